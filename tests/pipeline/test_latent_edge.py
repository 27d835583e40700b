"""Finished latents go back to the context memory: the edge, its items, and the proof that it never stops a run."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest

from paceline.pipeline.liveness import check_liveness
from paceline.pipeline.program import UnitKind
from paceline.pipeline.token_game import TokenGame
from paceline.pipeline.topology import ContextMode, WorldTopology
from paceline.pipeline.validate import validate
from tests.pipeline.nets import SHAPE, contiguous, world

PARTITIONS = [
    (steps, cuts)
    for steps in (1, 2, 3, 4)
    for count in range(1, steps + 1)
    for cuts in combinations(range(1, steps + 1), count)
]


def net(steps: int, cuts: tuple[int, ...], mode: ContextMode, **settings: object) -> WorldTopology:
    parts = contiguous(steps, cuts)
    if mode is ContextMode.matched:
        parts = [[step for step in part if step != "clean"] for part in parts]
        parts = [part for part in parts if part]
    return world(parts, mode=mode, memory=True, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ContextMode)
@pytest.mark.parametrize(("steps", "cuts"), PARTITIONS)
def test_the_usual_credits_are_enough(mode: ContextMode, steps: int, cuts: tuple[int, ...]) -> None:
    """Without an end, to an end at every frame of a period, and from every slot boundary of it."""
    topology = net(steps, cuts, mode)
    assert validate(topology) == []
    assert check_liveness(topology, SHAPE) is None


@pytest.mark.parametrize("mode", ContextMode)
@pytest.mark.parametrize(("steps", "cuts"), [(2, (1,)), (3, (1,)), (3, (2,)), (3, (1, 2, 3))])
def test_frames_that_skip_steps_need_no_more(mode: ContextMode, steps: int, cuts: tuple[int, ...]) -> None:
    late = {"deadline_ms": 40.0, "on_late": "fewer_steps"}
    assert check_liveness(net(steps, cuts, mode, inflight=3, extra=late), SHAPE) is None


@pytest.mark.parametrize("mode", ContextMode)
@pytest.mark.parametrize(("steps", "cuts"), [(1, (1,)), (2, (1,)), (2, (1, 2)), (3, (2,)), (4, (1, 2, 3))])
def test_every_latent_is_taken_once_and_the_end_leaves_none(
    mode: ContextMode, steps: int, cuts: tuple[int, ...]
) -> None:
    topology = net(steps, cuts, mode)
    edges = [index for index, edge in enumerate(topology.edges) if edge.carries == "latent"]
    end = topology.prompt_frames + 9
    for first_steps in ({}, {topology.prompt_frames + 3: steps - 1} if steps > 1 and mode is ContextMode.clean else {}):
        game = TokenGame.start(topology, SHAPE, end, first_steps)
        given: Counter[int] = Counter()
        taken: list[tuple[int, int]] = []
        while not game.done:
            for stage in game.enabled():
                unit = game.fire(stage)
                given.update(give.position for give in unit.gives if give.edge in edges)
                taken += [(key.position, unit.frame) for key in unit.takes if key.edge in edges]
                if unit.kind is UnitKind.receive:
                    # What is to be in the memory for this frame has come with it or before.
                    last = unit.frame - game.streams[stage].program.context.written
                    if edges and stage == topology.edges[edges[0]].target and topology.prompt_frames <= last < end:
                        assert last in [position for position, _ in taken]
        computed = [*range(topology.prompt_frames, end)] if edges else []
        assert sorted(given.elements()) == computed
        assert [position for position, _ in taken] == computed
        assert not game.tokens.arrived


def test_it_is_needed_between_two_stages_and_nowhere_else() -> None:
    whole = net(2, (1,), ContextMode.cascade)
    lacking = whole.model_copy(update={"edges": tuple(e for e in whole.edges if e.carries != "latent")})
    (problem,) = validate(lacking)
    assert problem.path == ("edges",)
    assert "finished latents" in problem.wrong
    assert problem.right == "add {from: step1, to: step0, carries: latent, via: dist}"
    without = whole.with_context(whole.context.model_copy(update={"memory": None}))
    (problem,) = validate(without)
    assert "no context memory" in problem.wrong
    turned = tuple(
        edge.model_copy(update={"source": edge.target, "target": edge.source}) if edge.carries == "latent" else edge
        for edge in whole.edges
    )
    assert len(validate(whole.model_copy(update={"edges": turned}))) == 2


def test_a_lack_of_credit_is_named() -> None:
    topology = net(3, (1, 2), ContextMode.cascade)
    starved = tuple(e.model_copy(update={"bytes": 10}) if e.carries == "latent" else e for e in topology.edges)
    deadlock = check_liveness(topology.model_copy(update={"edges": starved}), SHAPE)
    assert deadlock is not None
    assert "latent" in str(deadlock) or "step2" in str(deadlock)
