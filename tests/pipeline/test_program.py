"""Programs in every mode, partition and order: what is given is taken, what is read is there, nothing is left over."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.pipeline.context import Context, Read
from paceline.pipeline.program import ModelShape, Row, Unit, UnitKind
from paceline.pipeline.programs import program_for
from paceline.pipeline.token_game import TokenGame
from paceline.pipeline.topology import ContextMode, Schedule, Topology
from paceline.pipeline.unit import Key
from tests.pipeline.nets import SHAPE, contiguous, world


@dataclass
class Case:
    """A topology and what happens in one session of it."""

    topology: Topology
    shape: ModelShape
    frames: int
    first_steps: dict[int, int]

    def context(self) -> Context:
        spec = self.topology.context
        end = spec.prompt + self.frames
        return Context(
            spec.mode, self.topology.model.steps, spec.window, spec.sinks, spec.prompt, end, self.first_steps
        )


@st.composite
def cases(draw: st.DrawFn, batched: bool = False, skips: bool = True) -> Case:
    steps = draw(st.integers(1, 5))
    cuts = [] if batched else draw(st.lists(st.integers(1, steps), unique=True))
    mode = draw(st.sampled_from(ContextMode))
    skip = skips and draw(st.booleans())
    prompt, sinks = draw(st.integers(1, 4)), draw(st.integers(0, 4))
    # Where frames skip steps, or sinks are generated, some partitions need more than the default of two credits.
    credit = 64 if skip or sinks > prompt else 2
    topology = world(
        contiguous(steps, cuts),
        mode=mode,
        window=draw(st.integers(1, 5)),
        sinks=sinks,
        prompt=prompt,
        schedule=Schedule.batched if batched else Schedule.wavefront,
        inflight=credit,
        layers=[draw(st.integers(1, 5))],
    )
    shape = ModelShape(draw(st.integers(1, 4)), SHAPE.latent_bytes, SHAPE.kv_layer_bytes, SHAPE.frame_bytes)
    case = Case(topology, shape, draw(st.integers(0, 12)), {})
    if skip:
        context = case.context()
        for frame in range(context.prompt, context.end):
            context.begin(frame, max(draw(st.integers(0, steps - 1)), context.earliest_step(frame)))
    return case


@dataclass
class Record:
    """What a play saw."""

    given: Counter[Key] = field(default_factory=Counter)
    taken: Counter[Key] = field(default_factory=Counter)
    layers: dict[Row, list[tuple[int, int]]] = field(default_factory=dict)
    reads: dict[Row, tuple[Read, ...]] = field(default_factory=dict)
    order: dict[str, list[Row]] = field(default_factory=dict)


class Cache:
    """What a stage holds: layers of (frame, level), made here or taken in."""

    def __init__(self) -> None:
        self.layers: dict[tuple[int, int], set[int]] = {}

    def put(self, frame: int, level: int, start: int, stop: int) -> None:
        held = self.layers.setdefault((frame, level), set())
        assert held.isdisjoint(range(start, stop)), "the same KV came twice"
        held.update(range(start, stop))

    def has(self, frame: int, level: int, start: int, stop: int) -> bool:
        return self.layers.get((frame, level), set()).issuperset(range(start, stop))


def play(case: Case, random: Random) -> Record:
    """Fire enabled units in random order to the end, and check of every one that what it reads is there."""
    game = TokenGame.start(case.topology, case.shape, case.context().end, case.first_steps)
    record = Record()
    caches = {stage: Cache() for stage in case.topology.stages}
    while enabled := game.enabled():
        stage = random.choice(enabled)
        context = game.streams[stage].program.context
        unit = game.waiting()[stage]
        take_in(case, record, caches[stage], unit)
        compute(record, caches[stage], unit, context)
        game.fire(stage)
        record.given.update(Key(give.edge, 0, give.position, give.part) for give in unit.gives)
    assert game.done, f"stuck at {game.waiting()}"
    assert not game.tokens.arrived
    assert all(ledger.inflight(0) == (0, 0) for ledger in game.tokens.ledgers)
    return record


def take_in(case: Case, record: Record, cache: Cache, unit: Unit) -> None:
    record.taken.update(unit.takes)
    for key in unit.takes:
        edge = case.topology.edges[key.edge]
        if edge.carries == "kv":
            level, layer = divmod(key.part, case.shape.layers)
            streamed = case.topology.context.mode is ContextMode.cascade
            first = case.topology.stage_steps(edge.source)[0]
            count = min(edge.layers, case.shape.layers - layer) if streamed and level == first else case.shape.layers
            cache.put(key.position, level, layer, layer + count)


def compute(record: Record, cache: Cache, unit: Unit, context: Context) -> None:
    start, stop = unit.layers
    if unit.kind is UnitKind.prefill:
        assert unit.rows == (Row(unit.frame, context.steps),)
    elif unit.kind is not UnitKind.layers:
        return
    # KV of the rows of one forward is made before any of them reads it.
    for row in unit.rows:
        cache.put(row.frame, row.step, start, stop)
    for row in unit.rows:
        reads = context.reads(row.frame, row.step)
        for read in reads:
            assert cache.has(read.frame, read.level, start, stop), f"{row} reads {read}, which is not there"
        assert record.reads.setdefault(row, reads) == reads
        if unit.kind is UnitKind.layers:
            record.layers.setdefault(row, []).append((start, stop))
            if start == 0:
                record.order.setdefault(unit.stage, []).append(row)


def check(case: Case, record: Record) -> None:
    assert record.given == record.taken
    assert not record.given or max(record.given.values()) == 1
    context = case.context()
    last = context.steps - (context.mode is ContextMode.matched)
    passes = {
        Row(frame, step)
        for frame in range(context.prompt, context.end)
        for step in range(context.first_step(frame), last + 1)
    }
    assert set(record.layers) == passes
    for row, runs in record.layers.items():
        assert runs[0][0] == 0
        assert runs[-1][1] == case.shape.layers
        assert all(a[1] == b[0] for a, b in pairwise(runs)), "layers out of order"
        assert record.reads[row] == context.reads(row.frame, row.step)


@settings(max_examples=250, deadline=None)
@given(cases(), st.integers(0, 2**32))
def test_any_order_gives_what_is_taken_and_finds_what_it_reads(case: Case, seed: int) -> None:
    check(case, play(case, Random(seed)))


@settings(max_examples=60, deadline=None)
@given(cases(batched=True), st.integers(0, 2**32))
def test_joint_forwards_do_the_same_passes(case: Case, seed: int) -> None:
    record = play(case, Random(seed))
    check(case, record)
    assert all(runs == [(0, case.shape.layers)] for runs in record.layers.values())


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(0, 2**32), st.integers(0, 2**32))
def test_order_and_partition_never_change_a_read(case: Case, seed: int, other: int) -> None:
    spec, steps = case.topology.context, case.topology.model.steps
    single = world(contiguous(steps, []), mode=spec.mode, window=spec.window, sinks=spec.sinks, prompt=spec.prompt)
    alone = Case(single, case.shape, case.frames, case.first_steps)
    reads = play(case, Random(seed)).reads
    assert reads == play(case, Random(other)).reads == play(alone, Random(0)).reads


@given(cases(skips=False))
def test_a_stage_goes_slot_by_slot_and_in_a_slot_oldest_frame_first(case: Case) -> None:
    steps = case.topology.model.steps
    for rows in play(case, Random(0)).order.values():
        if case.topology.context.mode is ContextMode.clean:
            places = [(row.frame * (steps + 1) + row.step, 0) for row in rows]
        else:
            places = [(row.frame + row.step, row.frame) for row in rows]
        assert places == sorted(places)


def test_kv_streams_one_layer_behind_in_cascade_only() -> None:
    for mode, items in ((ContextMode.cascade, 4), (ContextMode.staggered, 1), (ContextMode.clean, 1)):
        topology = world([[0], [1, "clean"]], mode=mode, window=3)
        units = list(program_for(topology, SHAPE, "step1", 0).units(stop=10))
        level = 2 if mode is ContextMode.clean else 1
        given = [g for unit in units for g in unit.gives if g.position == 6 and g.part // SHAPE.layers == level]
        kv = [g for g in given if topology.edges[g.edge].carries == "kv"]
        assert len(kv) == items
        assert sum(g.nbytes for g in kv) == SHAPE.layers * SHAPE.kv_layer_bytes


def test_matched_sends_no_latent_to_a_stage_that_has_nothing_to_compute() -> None:
    topology = world([[0], [1], ["clean"]], mode=ContextMode.matched)
    case = Case(topology, SHAPE, 6, {})
    check(case, play(case, Random(0)))
    kinds = {unit.kind for unit in program_for(topology, SHAPE, "stepclean", 0).units()}
    assert kinds == {UnitKind.prefill}


def test_a_late_frame_in_front_of_a_stage_of_several_steps_does_not_block_it() -> None:
    # Frame 4 begins at the step of the second stage; the first stage's steps of frame 5, which it skips too, would read
    # KV that frame 4 has not made yet. To wait for it there would be to wait for itself.
    topology = world([[0, 1, 2], [3, "clean"]], window=2, prompt=1)
    case = Case(topology, SHAPE, 10, {4: 3, 5: 2, 6: 1})
    check(case, play(case, Random(0)))


@pytest.mark.parametrize("first_steps", [{3: 1}, {3: 1, 4: 1}])
def test_kv_in_front_of_a_level_that_is_read_early_is_taken_first(first_steps: dict[int, int]) -> None:
    # Frame 3 skips step 0, so level 1 stands in and is read in the slot of its making, by a pass or in a skipped one's
    # place. In front of it on the edge lie levels of the sinks that only frame 5 reads; they fill both credits.
    topology = world([[0], [1, 2, "clean"]], mode="staggered", window=1, sinks=3, prompt=1, inflight=2)
    case = Case(topology, SHAPE, 5, first_steps)
    check(case, play(case, Random(0)))
