"""Values that are not finite: refused as weights, and never shown as frames."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from paceline.pipeline.topology import ContextMode
from paceline.runtime.serial import run_serial
from paceline.runtime.spec import RunSpec
from paceline.stages.dit.config import DiTConfig
from paceline.stages.dit.model import DiTModel
from paceline.stages.dit.network import DiT, load_dit, save_dit
from paceline.stages.finite import is_finite
from tests.stages.conftest import random_model
from tests.stages.lockstep import Lockstep, frames_of
from tests.stages.test_denoise import build
from zoo.world.environment import ACTIONS, HEADINGS, TORUS, VIEW

FRAMES = 12
FRAME_BYTES = 32 * 32 * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_one_value_among_many_is_found(dtype: torch.dtype, wrong: float) -> None:
    values = torch.linspace(-60000, 60000, 1001).to(dtype)
    assert is_finite(values)
    for at in (0, 500, 1000):
        spoilt = values.clone()
        spoilt[at] = wrong
        assert not is_finite(spoilt)
    assert is_finite(torch.zeros(0)) and is_finite(torch.ones(3, dtype=torch.int64))


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, wrong: float) -> None:
    model = random_model(DiTConfig(width=64, layers=2, heads=2))
    model.block(1).up.weight[7, 3] = wrong
    save_dit(model, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=r"the weight 'blocks\.1\.up\.weight' holds NaN or infinity"):
        load_dit(tmp_path / "bad.safetensors")


def test_the_configuration_names_every_tensor() -> None:
    for config in (DiTConfig(), DiTConfig(width=64, layers=3, heads=2, grid_y=4, token_dim=12)):
        assert config.tensors() == {name: tuple(value.shape) for name, value in DiT(config).state_dict().items()}


def test_the_default_configuration_is_of_the_embedded_world() -> None:
    config = DiTConfig()
    assert (config.grid_y, config.grid_x, config.torus) == (VIEW, VIEW, TORUS)
    assert (config.actions, config.headings) == (len(ACTIONS), len(HEADINGS))


@pytest.mark.parametrize("mode", list(ContextMode))
def test_a_frame_that_is_not_finite_ends_its_session_alone(
    mode: ContextMode, model: DiTModel, weights: Path, tmp_path: Path
) -> None:
    """A model whose numbers overflow under one action: each session is shown up to the frame before it."""
    topology = build(weights, mode.value, [[0], [1, 2]], window=2)
    right = tmp_path / "right"
    right.mkdir()
    run_serial(RunSpec(topology, FRAMES, 3, 0, out=right), right)
    spoilt = load_dit(weights)
    spoilt.action.weight[ACTIONS.index("right")] = torch.finfo(torch.float32).max
    save_dit(spoilt, tmp_path / "spoilt.safetensors")
    topology = build(tmp_path / "spoilt.safetensors", mode.value, [[0], [1, 2]], window=2)
    serial_folder = tmp_path / "serial"
    serial_folder.mkdir()
    serial = run_serial(RunSpec(topology, FRAMES, 3, 0, out=serial_folder), serial_folder)
    folder = tmp_path / "net"
    folder.mkdir()
    net = Lockstep(topology, DiTModel(spoilt), FRAMES, 3, folder, out=folder)
    net.run(random.Random(0))
    lengths = []
    for session, result in enumerate(serial.sessions):
        found = net.sessions[session].result()
        assert (found.frames, found.failed, found.outputs_sha256) == (
            result.frames, result.failed, result.outputs_sha256
        )  # fmt: skip
        shown = frames_of(folder, session)
        assert shown == frames_of(right, session)[: result.frames * FRAME_BYTES]
        assert (result.failed is None) == (result.frames == FRAMES)
        if result.failed is not None:
            assert result.failed == (
                f"stage decode, at frame {result.frames}: the frame holds NaN or infinity; see that the weights are "
                "those of a model that works"
            )
        lengths.append(result.frames)
    assert len(set(lengths)) > 1, "one action at one time would show nothing"
