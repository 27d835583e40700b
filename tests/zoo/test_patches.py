"""Frames to tokens and back, and the times of the steps."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paceline.stages.dit.patches import decode, patchify, unpatchify
from paceline.stages.world_file import step_times


def picture(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.Generator(np.random.Philox(seed)).integers(0, 256, shape, dtype=np.uint8))


def test_round_trip_is_exact() -> None:
    frames = picture(0, 2, 3, 32, 24, 3)
    tokens = patchify(frames)
    assert tokens.shape == (2, 3, 48, 48)
    assert float(tokens.min()) >= -1 and float(tokens.max()) <= 1
    assert torch.equal(decode(tokens), frames)


def test_tokens_are_patches_row_by_row() -> None:
    frame = picture(1, 32, 32, 3)
    patch = unpatchify(patchify(frame)[8 * 2 + 5 :][:1], grid_y=1)
    expected = frame[8:12, 20:24].float() / 127.5 - 1
    assert torch.equal(patch, expected)


def test_decode_clamps() -> None:
    assert torch.equal(decode(torch.full((64, 48), 3.0)), torch.full((32, 32, 3), 255, dtype=torch.uint8))


def test_odd_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="30 x 32"):
        patchify(picture(2, 30, 32, 3))


@given(st.integers(1, 64))
def test_step_times_fall_from_noise_to_clean(steps: int) -> None:
    times = step_times(steps)
    assert len(times) == steps + 1
    assert times[0] == 1.0 and times[-1] == 0.0
    assert all(a > b for a, b in pairwise(times))


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        step_times(0)
