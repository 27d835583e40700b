"""What counts more in training, and that conflicts lead back to the truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from zoo.world.batches import Recipe, draw_batch
from zoo.world.emphasis import BALL, FRESH, PAINTED, SETTLING, times_shown
from zoo.world.environment import PAINT

RECIPE = Recipe(batch=16, frames=8)


def test_ground_is_counted_once_for_every_frame_that_shows_it() -> None:
    pose = np.array([[[0, 0], [0, 2], [0, 2], [4, 2]]])
    shown = times_shown(pose)[0]
    assert (shown[0] == 0).all()
    assert (shown[1, :, :28] == 1).all() and (shown[1, :, 28:] == 0).all()
    assert (shown[2, :, :28] == 2).all() and (shown[2, :, 28:] == 1).all()
    assert (shown[3, :24, :28] == 3).all() and (shown[3, 24:] == 0).all()


def test_only_the_named_weights_occur_and_the_first_frame_has_none_for_fresh_ground() -> None:
    s = draw_batch(RECIPE, 3, 0)
    assert set(s.weight.unique().tolist()) <= {1.0, FRESH, SETTLING, BALL, PAINTED}
    assert set(s.weight[:, 0].unique().tolist()) <= {1.0, PAINTED}


def test_paint_counts_from_the_frame_that_paints() -> None:
    s = draw_batch(RECIPE, 3, 0)
    heavy = (s.weight == PAINTED).any(dim=-1).sum(dim=-1)  # [B, F] tokens
    assert 0 < (heavy > 0).float().mean() < 0.8
    first = (heavy > 0).int().argmax(dim=1)
    for row in (heavy > 0).any(dim=1).nonzero()[:, 0].tolist():
        assert s.action[row, first[row]] == PAINT
        # One painted tile touches at most four tokens.
        assert 1 <= heavy[row, first[row]] <= 4


@pytest.mark.parametrize("conflict", [0.0, 0.9])
def test_the_velocity_leads_from_every_noised_frame_to_the_true_one(conflict: float) -> None:
    recipe = replace(RECIPE, cascade=1.0, blur=0.0, conflict=conflict)
    s, plain = draw_batch(recipe, 3, 0), draw_batch(replace(recipe, conflict=0.0), 3, 0)
    t = s.t[..., None, None]
    x0 = torch.where(t > 0, s.x - t * s.velocity, s.x)
    truth = torch.where(t > 0, plain.x - t * plain.velocity, plain.x)
    torch.testing.assert_close(x0, truth, atol=1e-4, rtol=0)
    mixed = (s.x - plain.x).abs() > 1e-6
    assert bool(mixed.any()) == (conflict > 0)
    assert not mixed[s.t.eq(0) | s.t.eq(1)].any()


def test_most_sequences_start_views_of_the_same_ground_from_the_same_noise() -> None:
    s = draw_batch(replace(RECIPE, cascade=0.0, clean=0.0, blur=0.0, grounded=1.0), 3, 0)
    eps = s.x + (1 - s.t[..., None, None]) * s.velocity
    same = 0
    for row in range(RECIPE.batch):
        for frame in range(1, RECIPE.frames):
            if torch.equal(s.pose[row, frame], s.pose[row, frame - 1]):
                torch.testing.assert_close(eps[row, frame], eps[row, frame - 1], atol=1e-4, rtol=0)
                same += 1
    assert same > 0
