"""The noise that frames start from: anchored to the ground, or each frame's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paceline.kernels.philox import Purpose, normal
from paceline.stages.dit.config import DiTConfig, FrameCondition
from paceline.stages.dit.model import StartNoise
from paceline.stages.dit.patches import unpatchify

GROUND = DiTConfig(noise="ground")
poses = st.integers(0, GROUND.torus - 1)


def view(noise: StartNoise, frame: int, y: int, x: int) -> torch.Tensor:
    return unpatchify(noise.at(frame, FrameCondition(0, 0, y, x)))


@given(poses, poses, st.integers(0, 14), st.integers(0, 14), st.integers(0, 10_000))
def test_two_views_of_the_same_ground_start_from_the_same_noise(y: int, x: int, dy: int, dx: int, frame: int) -> None:
    noise = StartNoise(GROUND, 5)
    one = view(noise, frame, y, x)
    other = view(noise, frame + 1, (y + dy) % GROUND.torus, (x + dx) % GROUND.torus)
    assert torch.equal(one[2 * dy :, 2 * dx :], other[: 32 - 2 * dy, : 32 - 2 * dx])


def test_noise_on_the_ground_is_standard_normal_and_the_session_s_own() -> None:
    one, other = (view(StartNoise(GROUND, seed), 0, 0, 0).double() for seed in (1, 2))
    # 3,072 values: 5 standard errors of the mean and of the variance.
    assert abs(one.mean()) < 5 / 3072**0.5
    assert abs(one.var() - 1) < 5 * (2 / 3072) ** 0.5
    assert abs((one * other).mean()) < 5 / 3072**0.5


def test_without_a_ground_every_frame_draws_its_own() -> None:
    config = replace(GROUND, noise="frame")
    noise = StartNoise(config, 5)
    condition = FrameCondition(0, 0, 3, 4)
    assert torch.equal(noise.at(7, condition), normal(5, 7, Purpose.noise, (64, 48)))
    assert not torch.equal(noise.at(7, condition), noise.at(8, condition))


def test_tokens_that_are_no_patches_of_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="4 x 4 pixels"):
        replace(GROUND, token_dim=16).check()
