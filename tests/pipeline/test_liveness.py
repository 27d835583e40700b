"""The liveness check against brute force, its cycles and its fixes."""

from __future__ import annotations

from itertools import product
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.pipeline.liveness import Limits, check_liveness, explore
from paceline.pipeline.program import ModelShape
from paceline.pipeline.token_game import TokenGame
from paceline.pipeline.topology import ContextMode, Topology
from tests.pipeline.nets import SHAPE, contiguous, sleepers, world


def runs(topology: Topology, shape: ModelShape, frames: int, random: Random) -> bool:
    """Whether one random execution comes to its end."""
    prompt = topology.context.prompt if topology.workload == "world" else 0
    game = TokenGame.start(topology, shape, prompt + frames)
    while enabled := game.enabled():
        game.fire(random.choice(enabled))
    return game.done


def limited(topology: Topology, limits: list[tuple[int, int]]) -> Topology:
    edges = [
        edge.model_copy(update={"inflight": items, "bytes": size})
        for edge, (items, size) in zip(topology.edges, limits, strict=True)
    ]
    return topology.model_copy(update={"edges": tuple(edges)})


def with_edges(topology: Topology, **update: Any) -> Topology:
    edges = tuple(edge.model_copy(update=update) for edge in topology.edges)
    return topology.model_copy(update={"edges": edges})


@st.composite
def tight(draw: st.DrawFn) -> Topology:
    """A world with few credits and few bytes, so that some of them deadlock: an item of KV has 10, 20, 30 or 40 kB."""
    steps = draw(st.integers(1, 4))
    topology = world(
        contiguous(steps, draw(st.lists(st.integers(1, steps), unique=True))),
        mode=draw(st.sampled_from(ContextMode)),
        window=draw(st.integers(1, 4)),
        sinks=draw(st.integers(0, 2)),
        recall=draw(st.integers(0, 1)),
        layers=draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)),
    )
    size = st.sampled_from([1_000, 10_000, 20_000, 40_000, 2**26])
    one = st.tuples(st.integers(1, 3), size)
    return limited(topology, [draw(one) if draw(st.booleans()) else (2, 2**26) for _ in topology.edges])


@settings(max_examples=150, deadline=None)
@given(tight(), st.integers(0, 2**32), st.integers(0, 25))
def test_agrees_with_random_executions(topology: Topology, seed: int, frames: int) -> None:
    found = check_liveness(topology, SHAPE)
    if found is None:
        assert runs(topology, SHAPE, frames, Random(seed))
        return
    assert not runs(topology, SHAPE, 60, Random(seed))
    assert found.fix, str(found)
    raised = [(edge.inflight, edge.bytes) for edge in topology.edges]
    for index, limits in found.fix.items():
        raised[index] = limits.inflight, limits.bytes
    fixed = limited(topology, raised)
    assert check_liveness(fixed, SHAPE) is None
    assert runs(fixed, SHAPE, frames, Random(seed))
    # No limit of the fix could be lower, with the others as they are.
    for index, limits in found.fix.items():
        edge = topology.edges[index]
        for lower in (Limits(limits.inflight - 1, limits.bytes), Limits(limits.inflight, limits.bytes - 1)):
            if lower.inflight >= edge.inflight and lower.bytes >= edge.bytes:
                less = [*raised[:index], (lower.inflight, lower.bytes), *raised[index + 1 :]]
                assert check_liveness(limited(topology, less), SHAPE) is not None


@settings(max_examples=100, deadline=None)
@given(tight())
def test_every_verdict_of_life_is_a_proof(topology: Topology) -> None:
    verdict = explore(topology, SHAPE)
    assert verdict.live is False or verdict.repeats


@pytest.mark.parametrize(("mode", "inflight"), [*((mode, None) for mode in ContextMode), ("clean", 1), ("matched", 1)])
@pytest.mark.parametrize("window", [1, 3, 8])
def test_no_partition_deadlocks_with_defaults(mode: str, inflight: int | None, window: int) -> None:
    for steps, run in product(range(1, 5), (1, 3)):
        for mask in range(1 << steps):
            cuts = [place + 1 for place in range(steps) if mask >> place & 1]
            topology = world(contiguous(steps, cuts), mode=mode, inflight=inflight, layers=[run], window=window)
            verdict = explore(topology, SHAPE)
            assert verdict.live, (steps, cuts, run)
            assert verdict.repeats, (steps, cuts, run)


def test_runs_of_different_length_need_credit_for_the_longest() -> None:
    # The clean stage sends runs of 3 layers to step 1 and single ones to step 0, which can't take the second of them
    # before it has the first layer of level 1, for which step 1 needs the run of 3.
    topology = world([[0], [1], ["clean"]])
    kv = {(e.source, e.target): i for i, e in enumerate(topology.edges) if e.carries == "kv"}
    edges = list(topology.edges)
    long = kv["stepclean", "step1"]
    edges[long] = edges[long].model_copy(update={"layers": 3})
    found = check_liveness(topology.model_copy(update={"edges": tuple(edges)}), SHAPE)
    assert found is not None
    assert found.fix == {kv["stepclean", "step0"]: Limits(3, 2**26)}


def test_a_deadlock_names_the_cycle_and_the_fix() -> None:
    # Two layers of KV have 20 kB, a whole level has 40.
    topology = world([[0], [1, 2, "clean"]], layers=(2,))
    small = [(2, 15_000) if edge.carries == "kv" else (2, 2**26) for edge in topology.edges]
    found = check_liveness(limited(topology, small), SHAPE)
    assert found is not None
    assert found.closed
    assert {wait.stage for wait in found.cycle} == {"step0", "step1"}
    text = str(found)
    assert text == (
        "deadlock: stage step1 (session 0, frame 2) waits for a credit on edge 4 to step0 (bytes 14.6 KiB, an item has "
        "19.5 KiB); step0 (frame 3) waits for kv from step1 of frame 2 level 1 layer 0. Fix: --set edges.4.bytes=40000"
    )


def test_a_long_prompt_proves_nothing_about_what_comes_after_it() -> None:
    # While the prompt is computed the state repeats, and no KV has travelled yet.
    topology = world([[0], [1, "clean"]], prompt=60)
    small = [(2, 5_000) if edge.carries == "kv" else (2, 2**26) for edge in topology.edges]
    assert check_liveness(limited(topology, small), SHAPE) is not None


def test_a_cycle_of_items_has_no_fix() -> None:
    topology = sleepers([1, 1])
    first = topology.edges[0]
    back = first.model_copy(update={"source": "s1", "target": "s0"})
    found = check_liveness(topology.model_copy(update={"edges": (*topology.edges, back)}), SHAPE)
    assert found is not None
    assert found.fix == {}
    assert [(wait.stage, wait.on) for wait in found.cycle] == [("s0", "s1"), ("s1", "s0")]
    assert str(found) == (
        "deadlock: stage s0 (session 0, frame 0) waits for frame 0 from s1; s1 (frame 0) waits for frame 0 from s0. "
        "No limit frees it: the stages wait for each other's items. Check edges and steps."
    )


def test_an_item_larger_than_its_edge_is_a_deadlock() -> None:
    topology = with_edges(sleepers([1, 1]), bytes=4000)
    found = check_liveness(topology, SHAPE)
    assert found is not None
    assert {limits.bytes for limits in found.fix.values()} == {4096}
    assert len(found.fix) == 3


def test_skipped_steps_are_tried_where_the_topology_allows_them() -> None:
    extra = {"on_late": "fewer_steps", "deadline_ms": 40}
    topology = world([[0, 1, 2], [3, "clean"]], extra=extra)
    assert check_liveness(topology, SHAPE) is None
