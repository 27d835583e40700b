"""Short proofs of liveness and full ones agree."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.pipeline.context import Context
from paceline.pipeline.liveness import check_liveness, explore
from paceline.pipeline.program import Row, Unit
from paceline.pipeline.programs import program_for
from paceline.pipeline.reduced import is_live_chain, with_few_credits, with_short_context, with_short_prompt
from paceline.pipeline.token_game import notify
from paceline.pipeline.topology import ContextMode, Topology
from tests.pipeline.nets import SHAPE, contiguous, sleepers, world
from tests.pipeline.test_liveness import limited


@st.composite
def wide(draw: st.DrawFn) -> Topology:
    """A world with any context, and credits so few that some deadlock."""
    steps = draw(st.integers(1, 4))
    topology = world(
        contiguous(steps, draw(st.lists(st.integers(1, steps), unique=True))),
        mode=draw(st.sampled_from(ContextMode)),
        window=draw(st.integers(1, 3) | st.integers(1, 24)),
        sinks=draw(st.integers(0, 9)),
        prompt=draw(st.integers(1, 7)),
        recall=draw(st.integers(0, 3)),
        layers=draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)),
    )
    size = st.sampled_from([1_000, 10_000, 20_000, 40_000, 2**26])
    one = st.tuples(st.integers(1, 20), size)
    return limited(topology, [draw(one) if draw(st.booleans()) else (2, 2**26) for _ in topology.edges])


def decisions(topology: Topology, frames: int, wishes: list[int]) -> dict[int, int]:
    """First steps of frames, as far as the context allows them."""
    spec, steps = topology.context, topology.model.steps
    context = Context.of(spec, steps, spec.prompt, spec.prompt + frames)
    for frame, wish in zip(range(spec.prompt, spec.prompt + frames), [*wishes, *[0] * frames], strict=False):
        context.begin(frame, max(min(wish, steps - 1), context.earliest_step(frame)))
    return context.first_steps


def units(topology: Topology, stage: str, frames: int, first_steps: dict[int, int]) -> list[Unit]:
    program = program_for(topology, SHAPE, stage, 0)
    end, found = topology.context.prompt + frames, []
    for unit in program.units(stop=end):
        found.append(unit)
        notify(program, unit, end, first_steps.get(unit.frame, 0))
    return found


@settings(max_examples=150, deadline=None)
@given(wide(), st.integers(1, 40), st.lists(st.integers(0, 3), max_size=40))
def test_a_short_context_makes_the_same_programs(topology: Topology, frames: int, wishes: list[int]) -> None:
    short = with_short_context(topology)
    assert short.context.window <= topology.model.steps + 2
    chosen = decisions(topology, frames, wishes)
    for stage in topology.stages:
        assert units(short, stage, frames, chosen) == units(topology, stage, frames, chosen)


def moved(units: list[Unit], by: int) -> list[tuple[object, ...]]:
    """What units take and give, with frames moved up. The slot is an order alone, and the same one."""
    return [
        (
            unit.kind, unit.frame - by, tuple(Row(row.frame - by, row.step) for row in unit.rows), unit.layers,
            tuple(key._replace(position=key.position - by) for key in unit.takes),
            tuple(replace(give, position=give.position - by) for give in unit.gives),
        )
        for unit in units
    ]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(wide(), st.integers(1, 30), st.lists(st.integers(0, 3), max_size=30))
def test_behind_a_short_prompt_programs_are_the_same(topology: Topology, frames: int, wishes: list[int]) -> None:
    short, prompt = with_short_prompt(topology), topology.context.prompt
    by = prompt - 1
    chosen = decisions(topology, frames, wishes)
    for stage in topology.stages:
        whole = units(topology, stage, frames, chosen)
        less = units(short, stage, frames, {frame - by: step for frame, step in chosen.items()})
        # One unit for each prompt frame, at the source and in denoise stages.
        ahead = sum(unit.frame < prompt for unit in whole)
        assert ahead in (0, prompt)
        assert moved(whole[ahead and by :], by) == moved(less, 0)


@settings(max_examples=200, deadline=None)
@given(wide())
def test_the_short_proof_and_the_full_one_agree(topology: Topology) -> None:
    full = explore(topology, SHAPE)
    found = check_liveness(topology, SHAPE)
    assert (found is None) == full.live
    if explore(with_few_credits(topology), SHAPE).live:
        assert full.live
    if found is not None and found.fix:
        raised = [(edge.inflight, edge.bytes) for edge in topology.edges]
        for index, limits in found.fix.items():
            raised[index] = limits.inflight, limits.bytes
        assert explore(limited(topology, raised), SHAPE).live


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=2, max_size=8), st.data())
def test_chains_are_live_where_items_fit(limits: list[int], data: st.DataObject) -> None:
    topology = sleepers([1.0] * (len(limits) - 1))
    sizes = st.sampled_from([4095, 4096, 10_000])
    topology = limited(topology, [(limit, data.draw(sizes)) for limit in limits])
    if data.draw(st.booleans()):  # an edge that leads elsewhere
        index = data.draw(st.integers(0, len(limits) - 1))
        edges: list[Any] = list(topology.edges)
        edges[index] = edges[index].model_copy(update={"target": data.draw(st.sampled_from(list(topology.stages)))})
        topology = topology.model_copy(update={"edges": tuple(edges)})
    live = explore(topology, SHAPE).live
    assert not is_live_chain(topology) or live
    straight = [(edge.source, edge.target) for edge in topology.edges] == list(
        pairwise(["source", *(name for name in topology.stages if name.startswith("s") and name[1:].isdigit()), "sink"])
    )
    if straight:
        assert is_live_chain(topology) == live
