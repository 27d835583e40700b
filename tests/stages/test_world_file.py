"""Headers of world models, which file is whose, and the noise between steps."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paceline.kernels.philox import Purpose, normal
from paceline.stages.dit.config import DiTConfig
from paceline.stages.dit.file import DiTFile
from paceline.stages.world_file import WeightsError, WorldHeader, open_world, safetensors_metadata, step_times
from paceline.stages.world_model import fresh_noise

UNEVEN = ((1.0, 0.0), (1.0, 0.9, 0.2, 0.0))


def header(**changes: Any) -> WorldHeader:
    fields: dict[str, Any] = {
        "layers": 3,
        "heads": 2,
        "head_dim": 8,
        "tokens": 12,
        "latent": (12, 6),
        "picture": (4, 6),
    }
    return WorldHeader(**(fields | changes))


def test_sizes_follow_the_types() -> None:
    wide = header(pictures=4, latent_frames=3).shape
    assert (wide.latent_bytes, wide.kv_layer_bytes, wide.frame_bytes) == (12 * 6 * 4, 2 * 12 * 2 * 8 * 4, 4 * 4 * 6 * 3)
    narrow = header(latent_dtype="float16", kv_dtype="bfloat16").shape
    assert (2 * narrow.latent_bytes, 2 * narrow.kv_layer_bytes) == (wide.latent_bytes, wide.kv_layer_bytes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "layers is 0"),
        ({"latent_frames": 5}, "12 tokens can't be shared out among 5 latent frames"),
        ({"kv_dtype": "int8"}, "kv_dtype is 'int8'"),
        ({"schedules": ((1.0, 0.5, 0.5, 0.0),)}, "do not fall"),
        ({"schedules": ((1.0,),)}, "do not fall"),
    ],
)
def test_a_header_that_can_not_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        header(**changes)


def test_step_times_are_the_model_s() -> None:
    assert [header().step_times(steps) for steps in (1, 2, 5)] == [step_times(steps) for steps in (1, 2, 5)]
    own = header(schedules=UNEVEN)
    assert (own.step_times(1), own.step_times(3)) == UNEVEN
    with pytest.raises(ValueError, match="takes 1 or 3 steps, not 2"):
        own.step_times(2)


def test_noise_between_steps_is_a_function_of_seed_frame_and_step() -> None:
    keys = list(product((1, 2), (0, 1, 1 << 16, 1 << 40), (0, 1, 63)))
    drawn = [fresh_noise(*key, (5, 7)) for key in keys]
    assert all(torch.equal(noise, fresh_noise(*key, (5, 7))) for key, noise in zip(keys, drawn, strict=True))
    assert len({noise.numpy().tobytes() for noise in drawn}) == len(keys)
    # No frame starts from it.
    starts = {normal(seed, frame, Purpose.noise, (5, 7)).numpy().tobytes() for seed, frame, _ in keys}
    assert not starts & {noise.numpy().tobytes() for noise in drawn}


def test_the_content_decides(weights: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "model.bin"
    renamed.write_bytes(weights.read_bytes())
    found = open_world(renamed)
    assert isinstance(found, DiTFile) and found.header() == DiTConfig(width=64, layers=3, heads=2).header
    empty = tmp_path / "empty.safetensors"
    empty.write_bytes(b"")
    with pytest.raises(WeightsError, match="holds no world model that one of dit recognises"):
        open_world(empty)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.safetensors; give"):
        open_world(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="as a folder none of dit recognises it"):
        open_world(tmp_path)


@given(st.binary(max_size=64))
def test_metadata_of_no_safetensors_file_are_empty(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(data)
    assert safetensors_metadata(path) == {}
