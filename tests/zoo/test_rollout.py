"""The frame-by-frame rollout computes the same function as the training forward, in every mode that has one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paceline.pipeline.recall import Recall
from paceline.stages.dit.patches import patchify
from paceline.stages.world_file import step_times
from tests.zoo.helpers import small_model
from zoo.world.rollout import WINDOW, Past, Record, _Player, level_read, record, rollout

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def noisy(shape: torch.Size, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.Generator(np.random.Philox(seed)).standard_normal(shape, dtype=np.float32))


def test_levels_of_the_modes() -> None:
    assert [level_read("clean", 0, d, 4) for d in (1, 2, 8)] == [4, 4, 4]
    assert [level_read("cascade", 1, d, 4) for d in (1, 2, 8)] == [2, 3, 4]
    assert [level_read("staggered", 1, d, 4) for d in (1, 2, 8)] == [1, 2, 4]
    assert [level_read("matched", 1, d, 4) for d in (1, 2, 8)] == [1, 1, 1]
    assert all(level_read(mode, 4, 1, 4) == 4 for mode in ("clean", "cascade", "staggered", "matched"))


def test_clean_rollout_is_the_training_forward() -> None:
    model, truth = small_model(layers=3), record([1, 2], 5)
    player = _Player(model, truth, "clean", 2)
    x = patchify(torch.from_numpy(truth.frames)).transpose(0, 1).contiguous()
    x[:, 4] = noisy(x[:, 4].shape)
    for frame in range(4):
        player.finish(frame, x[:, frame])
    found = player.forward(4, 0, x[:, 4], 1.0, 0.5)
    t, r = torch.zeros(2, 5), torch.zeros(2, 5)
    t[:, 4], r[:, 4] = 1.0, 0.5
    action, heading, pose = (torch.from_numpy(a).transpose(0, 1) for a in (truth.action, truth.heading, truth.pose))
    expected = model(x, t, r, action, heading, pose, torch.arange(5).expand(2, 5))
    torch.testing.assert_close(found, expected[:, 4], **TOLERANCE)


def test_cascade_is_one_joint_forward_over_the_frames_in_flight() -> None:
    steps, model, truth = 3, small_model(layers=3), record([1, 2], 6)
    times = step_times(steps)
    player = _Player(model, truth, "cascade", steps)
    clean = patchify(torch.from_numpy(truth.frames)).transpose(0, 1).contiguous()
    levels = {5: 0, 4: 1, 3: 2}  # frame -> the step at which the joint window holds it; older ones are finished
    x = torch.stack([noisy(clean[:, f].shape, f) if f in levels else clean[:, f] for f in range(6)], dim=1)
    for frame in range(3):
        player.finish(frame, x[:, frame])
    for frame, level in sorted(levels.items()):
        found = player.forward(frame, level, x[:, frame], times[level], times[level + 1])
    level_of = torch.tensor([levels.get(f, steps) for f in range(6)])
    t = torch.tensor(times)[level_of].expand(2, 6)
    r = torch.tensor(times)[(level_of + 1).clamp(max=steps)].expand(2, 6)
    action, heading, pose = (torch.from_numpy(a).transpose(0, 1) for a in (truth.action, truth.heading, truth.pose))
    expected = model(x, t, r, action, heading, pose, torch.arange(6).expand(2, 6))
    torch.testing.assert_close(found, expected[:, 5], **TOLERANCE)


def recalled(truth: Record, count: int) -> list[list[tuple[int, ...]]]:
    """By world and frame: what it recalls."""
    view = small_model().config.view
    recalls = [Recall(count, WINDOW, 1, WINDOW, len(truth.pose) + 1, view) for _ in range(truth.pose.shape[1])]
    for frame, poses in enumerate(truth.pose.tolist()):
        for recall, (y, x) in zip(recalls, poses, strict=True):
            recall.observe(frame, (y, x))
    return [[recall.frames(frame) for frame in range(len(truth.pose))] for recall in recalls]


@pytest.mark.parametrize("count", [0, 2])
def test_window_recalled_frames_and_clamped_first_frame(count: int) -> None:
    # In one layer keys do not depend on what a frame read, so a training sequence with gaps tells what a frame sees.
    model, truth = small_model(layers=1), record([1], 64)
    chosen = recalled(truth, count)[0] if count else [()] * 64
    last = next(frame for frame in range(20, 64) if len(chosen[frame]) == count)
    player = _Player(model, truth, "clean", 1, Past(recall=count))
    x = patchify(torch.from_numpy(truth.frames)).transpose(0, 1).contiguous()
    for frame in range(last):
        player.finish(frame, x[:, frame])
    found = player.forward(last, 0, x[:, last], 1.0, 0.0)
    frames = [0, *chosen[last], *range(last - 8, last + 1)]
    t = torch.zeros(1, len(frames))
    t[:, -1] = 1.0
    action, heading, pose = (
        torch.from_numpy(a)[frames].transpose(0, 1) for a in (truth.action, truth.heading, truth.pose)
    )
    index = torch.tensor([[max(frame - last, -12) + 12 for frame in frames]])  # distances are clamped at 12
    expected = model(x[:, frames], t, torch.zeros(1, len(frames)), action, heading, pose, index)
    torch.testing.assert_close(found, expected[:, -1], **TOLERANCE)


def test_each_world_recalls_its_own_frames() -> None:
    """Worlds side by side, which recall different numbers of frames, come out as each of them alone."""
    model, together = small_model(layers=2), record([1, 2, 3], 32)
    counts = [[len(frames) for frames in world] for world in recalled(together, 2)]
    assert any(len(set(column)) > 1 for column in zip(*counts, strict=True)), "no frame shows the difference"
    noise = noisy(torch.Size((32, 3, 64, 48)))

    def play(truth: Record, worlds: list[int], recall: int) -> torch.Tensor:
        player = _Player(model, truth, "cascade", 2, Past(recall=recall))
        made = []
        for frame in range(32):
            made.append(player.frame(frame, noise[frame, worlds]))
            player.finish(frame, made[-1])
        return torch.stack(made, dim=1)

    made = play(together, [0, 1, 2], 2)
    for world in range(3):
        torch.testing.assert_close(play(record([world + 1], 32), [world], 2)[0], made[world], atol=1e-3, rtol=1e-3)
    assert (play(together, [0, 1, 2], 0) - made).abs().max() > 0.1


def test_rollout_shows_the_prompt_and_repeats_itself() -> None:
    model, truth = small_model(), record([3], 7)
    made = rollout(model, truth, "matched", 2)
    assert np.array_equal(made[:4], truth.frames[:4])
    assert np.array_equal(made, rollout(model, truth, "matched", 2))
    assert not np.array_equal(made, rollout(model, truth, "matched", 2, seed=1))


def test_true_context_has_no_levels() -> None:
    with pytest.raises(ValueError, match="cascade"):
        rollout(small_model(), record([3], 5), "cascade", 2, forced=True)
