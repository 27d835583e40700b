"""Passes against the whole model run at once, and against themselves cut into runs of layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from paceline.pipeline.context import Read
from paceline.pipeline.program import Row
from paceline.stages.dit.config import FrameCondition
from paceline.stages.dit.model import DiTModel
from paceline.stages.frame_cache import FrameCache
from paceline.stages.passes import Pass, run_layers

FRAMES, LEVEL = 4, 0
CONDITIONS = [FrameCondition(action=f % 5, heading=f % 4, pose_y=5 * f, pose_x=47 - 7 * f) for f in range(FRAMES)]


@pytest.fixture(scope="module")
def x_FNE(model: DiTModel) -> Tensor:
    config = model.config
    return torch.randn(FRAMES, config.tokens, config.token_dim, generator=torch.Generator().manual_seed(3))


def cache_of(model: DiTModel) -> FrameCache:
    cache = FrameCache(model)
    for frame, condition in enumerate(CONDITIONS):
        cache.place(frame, condition)
    return cache


def started(model: DiTModel, cache: FrameCache, frame: int, x_FNE: Tensor, keys_only: bool = False) -> Pass:
    """The pass of a frame that reads all frames before it."""
    reads = tuple(Read(earlier, LEVEL) for earlier in range(frame))
    return Pass.start(
        model, model.open(0), cache, Row(frame, LEVEL), reads, x_FNE[frame], 0.75, 0.5, CONDITIONS[frame],
        keys_only,
    )  # fmt: skip


def velocities(model: DiTModel, x_FNE: Tensor, cuts: list[int]) -> list[Tensor]:
    """Velocities of all frames, one after another, in runs of layers that end at `cuts`."""
    cache, found = cache_of(model), []
    for frame in range(FRAMES):
        p = started(model, cache, frame, x_FNE)
        for start, stop in zip([0, *cuts], [*cuts, model.header.layers], strict=True):
            assert p.output is None
            run_layers(model, [p], start, stop)
        assert p.output is not None
        found.append(p.output)
    return found


def test_frame_by_frame_is_the_whole_sequence_at_once(model: DiTModel, x_FNE: Tensor) -> None:
    """The sequence is one causal forward with a mask; rotations there are relative to the first frame, so that bits
    differ and the function does not."""
    times = torch.full((1, FRAMES), 0.75), torch.full((1, FRAMES), 0.5)
    action, heading = (torch.tensor([[getattr(c, name) for c in CONDITIONS]]) for name in ("action", "heading"))
    pose = torch.tensor([[(c.pose_y, c.pose_x) for c in CONDITIONS]])
    whole = model.network(x_FNE[None], *times, action, heading, pose, torch.arange(FRAMES)[None])[0]
    torch.testing.assert_close(torch.stack(velocities(model, x_FNE, [])), whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cuts", [[1], [2], [1, 2]], ids=str)
def test_runs_of_layers_give_the_bits_of_one_run(model: DiTModel, x_FNE: Tensor, cuts: list[int]) -> None:
    for cut, whole in zip(velocities(model, x_FNE, cuts), velocities(model, x_FNE, []), strict=True):
        assert torch.equal(cut, whole)


def test_rows_of_one_forward_are_their_own_passes(model: DiTModel, x_FNE: Tensor) -> None:
    """Frames of different contexts, and of one, as rows of one forward."""
    alone = velocities(model, x_FNE, [])
    for frames in ([1, 1], [0, 2], [3, 1, 0]):
        rows = []
        for frame in frames:
            cache = cache_of(model)
            for earlier in range(frame):
                run_layers(model, [started(model, cache, earlier, x_FNE)], 0, model.header.layers)
            rows.append(started(model, cache, frame, x_FNE))
        run_layers(model, rows, 0, model.header.layers)
        for frame, row in zip(frames, rows, strict=True):
            assert row.output is not None
            torch.testing.assert_close(row.output, alone[frame], atol=1e-5, rtol=1e-4)


def test_a_clean_pass_has_the_kv_of_a_whole_one_and_no_velocity(model: DiTModel, x_FNE: Tensor) -> None:
    caches = cache_of(model), cache_of(model)
    passes = [
        started(model, cache, 0, x_FNE, keys_only) for cache, keys_only in zip(caches, (False, True), strict=True)
    ]
    for p in passes:
        run_layers(model, [p], 0, model.header.layers)
    for layer in range(model.header.layers):
        for whole, clean in zip(caches[0].get(0, LEVEL, layer), caches[1].get(0, LEVEL, layer), strict=True):
            assert torch.equal(whole, clean)
    with pytest.raises(RuntimeError, match="has not run its last layer"):
        passes[1].step_to()


def test_a_step_follows_the_velocity(model: DiTModel, x_FNE: Tensor) -> None:
    p = started(model, cache_of(model), 0, x_FNE)
    run_layers(model, [p], 0, model.header.layers)
    assert p.output is not None
    torch.testing.assert_close(p.step_to(), x_FNE[0] - 0.25 * p.output)


def test_conditions_are_computed_once(model: DiTModel) -> None:
    session = model.open(0)
    for t, r, condition in ((1.0, 0.5, CONDITIONS[0]), (0.5, 0.0, CONDITIONS[0]), (1.0, 0.5, CONDITIONS[1])):
        found = session.embed(0, t, r, condition)
        action, heading = torch.tensor([condition.action]), torch.tensor([condition.heading])
        assert torch.equal(found, model.network.condition(torch.tensor([t]), torch.tensor([r]), action, heading))
        # The pose of a frame does not enter its modulation, nor does its session.
        other = FrameCondition(condition.action, condition.heading, pose_y=1, pose_x=1)
        assert model.open(1).embed(1, t, r, other) is found
