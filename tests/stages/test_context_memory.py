"""A context memory in the runtime: every order of units gives the serial bits, whatever reads and writes it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paceline.pipeline.topology import ContextMode
from paceline.runtime.result import Decision
from paceline.runtime.serial import run_serial
from paceline.runtime.spec import RunSpec
from paceline.stages.denoise import DenoiseStage
from paceline.stages.dit.config import DiTConfig, GroundMemoryConfig
from paceline.stages.dit.model import DiTModel
from paceline.stages.dit.network import save_dit
from paceline.stages.memory import make_memory
from paceline.stages.memory.frame_memory import FrameMemory
from tests.stages.conftest import random_model
from tests.stages.lockstep import Lockstep
from tests.stages.test_denoise import PARTITIONS, build

DELTA = {"kind": "delta"}
CONFIG = DiTConfig(width=64, layers=2, heads=2, memory=GroundMemoryConfig(keys=64, values=5))


@pytest.fixture(scope="module")
def model() -> DiTModel:
    torch.set_num_threads(1)
    return DiTModel(random_model(CONFIG))


@pytest.fixture(scope="module")
def weights(model: DiTModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "memory.safetensors"
    save_dit(model.network, path)
    return path


@pytest.mark.parametrize("mode", list(ContextMode))
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    partition=st.sampled_from(PARTITIONS),
    window=st.integers(1, 4),
    prompt=st.integers(1, 7),
    recall=st.integers(0, 1),
    kind=st.sampled_from(["delta", "linear", "ttt_linear", "ttt_mlp"]),
    order=st.integers(0, 10_000),
)
def test_any_order_gives_the_serial_bits(
    mode: ContextMode, partition: list[list[int]], window: int, prompt: int, recall: int, kind: str, order: int,
    model: DiTModel, weights: Path, tmp_path: Path,
) -> None:  # fmt: skip
    context = {"window": window, "prompt": prompt, "recall": recall, "memory": {"kind": kind}}
    topology = build(weights, mode.value, partition, **context)
    serial = run_serial(RunSpec(topology, 9, 2, 0, kv_hash=True), tmp_path)
    net = Lockstep(topology, model, 9, 2, tmp_path)
    net.run(random.Random(order))
    assert net.kv() == serial.ranks[0].kv_sha256
    assert net.outputs() == [session.outputs_sha256 for session in serial.sessions]
    assert not net.box, "items were sent that nobody took"


@pytest.mark.parametrize("mode", [ContextMode.cascade, ContextMode.matched])
def test_frames_that_skip_steps_read_it_too(mode: ContextMode, model: DiTModel, weights: Path, tmp_path: Path) -> None:
    topology = build(weights, mode.value, [[0], [1], [2]], window=2, memory=DELTA)
    topology = topology.model_copy(update={"deadline_ms": 1.0, "on_late": "fewer_steps"})
    decisions = [Decision(0, frame, "fewer_steps", 1) for frame in (3, 4, 7)]
    serial = run_serial(RunSpec(topology, 10, 1, 0, kv_hash=True), tmp_path, decisions=decisions)
    net = Lockstep(topology, model, 10, 1, tmp_path, decisions=decisions)
    net.run(random.Random(3))
    assert net.kv() == serial.ranks[0].kv_sha256
    assert net.outputs() == [serial.sessions[0].outputs_sha256]


def test_it_changes_frames_only_once_something_has_left_the_window(
    model: DiTModel, weights: Path, tmp_path: Path
) -> None:
    """Of two rules the first frames are the same: both states are empty until frame `written` reads."""
    shown = {}
    for kind in ("delta", "linear"):
        topology = build(weights, "cascade", [[0], [1, 2]], window=3, prompt=2, memory={"kind": kind})
        folder = tmp_path / kind
        folder.mkdir()
        run_serial(RunSpec(topology, 8, 1, 0, out=folder), folder)
        shown[kind] = frames_of(folder)
    # Frame 5 (position 2 of the prompt, window 3, and one) has first a token written before it, in frame 1 of the
    # prompt; the rules differ from the second frame that is written on.
    written = 4
    first = written - 2  # generated frames before the first read of something
    assert all(a == b for a, b in zip(shown["delta"][:first], shown["linear"][:first], strict=True))
    assert any(a != b for a, b in zip(shown["delta"][first:], shown["linear"][first:], strict=True))


def frames_of(folder: Path) -> list[bytes]:
    from tests.stages.lockstep import frames_of as read

    data = read(folder, 0)
    size = len(data) // 8
    return [data[start : start + size] for start in range(0, len(data), size)]


def test_its_size_is_that_of_the_first_frame_for_ever(model: DiTModel, weights: Path, tmp_path: Path) -> None:
    sizes = {}
    for frames in (6, 40):
        topology = build(weights, "cascade", [[0], [1, 2]], window=2, memory=DELTA)
        net = Lockstep(topology, model, frames, 1, tmp_path)
        net.run(random.Random(0))
        (memory,) = [
            stage.memory(0)
            for stage in net.stages.values()
            if isinstance(stage, DenoiseStage) and stage.memory(0) is not None
        ]
        assert memory is not None
        sizes[frames] = memory.state_bytes
        assert (memory.reads, memory.writes) == (frames, frames + 2 - 3)
        assert memory.waiting <= 3 + 2
    assert sizes[6] == sizes[40] == 4 * 4 * 64 * 5


def test_a_model_without_one_is_named() -> None:
    plain = DiTModel(random_model(DiTConfig(width=64, layers=1, heads=2)))
    with pytest.raises(ValueError, match="trained without a context memory"):
        FrameMemory(make_memory("delta", {}), plain, 3)
