"""The training forward and the flow map's targets."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tests.zoo.helpers import small_model
from zoo.world.batches import Recipe, draw_batch
from zoo.world.flowmap import Sequences, joint_forward, loss, map_targets

RECIPE = Recipe(batch=4, frames=5, map_share=0.5)


def batch(step: int = 0) -> Sequences:
    return draw_batch(RECIPE, 3, step)


def test_joint_forward_is_the_networks_forward() -> None:
    model, s = small_model(), batch()
    expected = model(s.x, s.t, s.r, s.action, s.heading, s.pose, s.index)
    u, kv = joint_forward(model, s)
    torch.testing.assert_close(u, expected, atol=1e-5, rtol=1e-5)
    again, _ = joint_forward(model, s, kv)
    torch.testing.assert_close(again, expected, atol=1e-5, rtol=1e-5)


def test_a_frame_reads_the_given_context_and_only_earlier_frames() -> None:
    model, s = small_model(), batch()
    _, kv = joint_forward(model, s)
    moved = replace(s, x=s.x + torch.tensor([5.0, 0, 5.0, 5.0, 5.0])[None, :, None, None])
    with_context, _ = joint_forward(model, moved, kv)
    plain, _ = joint_forward(model, s)
    torch.testing.assert_close(with_context[:, 1], plain[:, 1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(with_context[:, 2], plain[:, 2], atol=1e-2)


def test_targets_go_from_t_to_r_by_way_of_the_split_while_other_frames_stand_still() -> None:
    model, s = small_model(), batch(1)
    _, kv = joint_forward(model, s)
    target = map_targets(model, s, kv)
    assert target.shape[0] == s.mapped == 2

    def alone(frame: int, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """Velocity of one frame, moved to x, t and r, in the sequence as it is."""
        moved = [s.x.clone(), s.t.clone(), s.r.clone()]
        for whole, part in zip(moved, (x, t, r), strict=True):
            whole[:, frame] = part
        return model(*moved, s.action, s.heading, s.pose, s.index)[:, frame]

    for frame in range(RECIPE.frames):
        x, t, r, split = s.x[:, frame], s.t[:, frame], s.r[:, frame], s.split[:, frame]
        assert ((r <= split) & (split <= t)).all()
        to_split = (t - split)[:, None, None] * alone(frame, x, t, split)
        to_r = (split - r)[:, None, None] * alone(frame, x - to_split, split, r)
        for row in range(2):
            average = (to_split + to_r)[row] / (t - r)[row]
            expected = average if t[row] > r[row] else s.velocity[row, frame]
            torch.testing.assert_close(target[row, frame], expected, atol=1e-3, rtol=1e-3)


def test_clean_frames_carry_no_loss() -> None:
    model, s = small_model(), batch(2)
    _, error = loss(model, s, autocast=False)
    assert (error[s.t == 0] == 0).all()
    assert (error[s.t > 0] > 0).all()


def test_batches_are_a_function_of_seed_and_step() -> None:
    one, same, other = draw_batch(RECIPE, 3, 7), draw_batch(RECIPE, 3, 7), draw_batch(RECIPE, 3, 8)
    assert torch.equal(one.x, same.x) and torch.equal(one.t, same.t)
    assert not torch.equal(one.x, other.x)
    assert (one.r <= one.t).all()
    assert torch.equal(one.r[2:], one.t[2:])
    assert (one.index.diff(dim=1) >= 1).all()
