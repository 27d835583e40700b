"""Sessions that end at any frame and begin at any slot boundary, in every mode, partition and order."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.pipeline.context import slot_of
from paceline.pipeline.program import Unit, UnitKind
from paceline.pipeline.programs import program_for
from paceline.pipeline.token_game import TokenGame, items_across, notify, remember
from paceline.pipeline.topology import ContextMode, Topology
from tests.pipeline.nets import SHAPE, sleepers, world
from tests.pipeline.test_program import Case, cases


def whole(case: Case, stage: str) -> list[Unit]:
    """All units of a stage, in order."""
    program, end = program_for(case.topology, case.shape, stage, 0), case.context().end
    found = []
    for unit in program.units(stop=end):
        found.append(unit)
        notify(program, unit, end, case.first_steps.get(unit.frame, 0))
    return found


def learned(case: Case, stage: str, slot: int | None = None) -> list[Unit]:
    """The units of a stage that learns of the end by an item, from a slot on."""
    program, end = program_for(case.topology, case.shape, stage, 0), case.context().end
    if slot is not None:
        remember(program, slot, case.first_steps)
    found = []
    for unit in program.units(slot, end if program.is_source else None):
        found.append(unit)
        notify(program, unit, end, case.first_steps.get(unit.frame, 0))
    return found


def boundaries(case: Case) -> range:
    """The slots at which a session can be cut: after its prompt, up to the pass that ends its last frame."""
    context = case.context()
    first, last = (slot_of(context.mode, context.steps, frame, 0) for frame in (context.prompt, context.end or 0))
    return range(first, last + 1)


def going_on(case: Case) -> Case:
    """The same session, with more frames."""
    longer = Case(case.topology, case.shape, case.frames + 20, dict(case.first_steps))
    context, end = longer.context(), case.context().end or 0
    for frame in range(end, end + 20):
        context.begin(frame, context.earliest_step(frame))
    return longer


def finish(game: TokenGame, random: Random) -> None:
    """Fire enabled units in random order to the end, and check that nothing is left."""
    while enabled := game.enabled():
        game.fire(random.choice(enabled))
    assert game.done, f"stuck at {game.waiting()}"
    assert not game.tokens.arrived
    assert all(ledger.inflight(0) == (0, 0) for ledger in game.tokens.ledgers)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_the_end_may_be_known_at_once_or_learned_by_its_item(case: Case) -> None:
    for stage in case.topology.stages:
        units = whole(case, stage)
        assert units == learned(case, stage)
        assert [unit.slot for unit in units] == sorted(unit.slot for unit in units)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_an_end_changes_no_unit_before_it(case: Case) -> None:
    """What later frames would have read is taken in their place; all else is as in a session that goes on."""
    longer = going_on(case)
    end = case.context().end or 0
    for stage in case.topology.stages:
        passes = [unit for unit in whole(longer, stage) if unit.rows and max(row.frame for row in unit.rows) < end]
        assert [unit for unit in whole(case, stage) if unit.rows] == passes


@settings(max_examples=120, deadline=None)
@given(cases(), st.integers(0, 2**32), st.data())
def test_a_session_goes_on_from_any_slot_boundary(case: Case, seed: int, data: st.DataObject) -> None:
    slot = data.draw(st.sampled_from(boundaries(case)))
    for stage in case.topology.stages:
        assert learned(case, stage, slot) == [unit for unit in whole(case, stage) if unit.slot >= slot]
    finish(TokenGame.start(case.topology, case.shape, case.context().end, case.first_steps, slot), Random(seed))


@settings(max_examples=60, deadline=None)
@given(cases(batched=True), st.integers(0, 2**32), st.data())
def test_so_does_one_whose_passes_are_one_forward(case: Case, seed: int, data: st.DataObject) -> None:
    slot = data.draw(st.sampled_from(boundaries(case)))
    finish(TokenGame.start(case.topology, case.shape, case.context().end, case.first_steps, slot), Random(seed))


@settings(max_examples=60, deadline=None)
@given(cases(), st.data())
def test_what_a_cut_holds_is_what_crosses_it(case: Case, data: st.DataObject) -> None:
    """Counted from the units themselves: given before the slot, and taken from it on."""
    slot = data.draw(st.sampled_from(boundaries(case)))
    longer = going_on(case)
    units = [unit for stage in case.topology.stages for unit in whole(longer, stage)]
    given_before = {(g.edge, g.position, g.part) for unit in units if unit.slot < slot for g in unit.gives}
    taken_after = {(k.edge, k.position, k.part) for unit in units if unit.slot >= slot for k in unit.takes}
    found = items_across(case.topology, case.shape, slot, case.first_steps)
    assert {(key.edge, key.position, key.part) for key in found} == given_before & taken_after


@pytest.mark.parametrize("mode", list(ContextMode))
def test_nothing_of_a_program_is_as_long_as_its_session(mode: ContextMode) -> None:
    topology = world([[0], [1], ["clean"]], mode=mode, window=4, sinks=1)
    game = TokenGame.start(topology, SHAPE)
    while game.state()[1] < 2000:
        for stage in game.enabled():
            game.fire(stage)
    assert sum(_held(stream.program) for stream in game.streams.values()) + len(game.tokens.arrived) < 500


def _held(program: object) -> int:
    intake, context = getattr(program, "intake", None), getattr(program, "context", None)
    kept = 0 if intake is None else len(intake.held) + len(intake.deferred)
    return kept + (0 if context is None else len(context.first_steps))


def test_a_program_that_starts_late_asks_for_no_earlier_frame() -> None:
    topology: Topology = world([[0], [1, "clean"]])
    slot = 10**6
    for stage in topology.stages:
        unit = next(program_for(topology, SHAPE, stage, 0).units(slot))
        assert slot <= unit.slot and unit.frame >= slot - 3
    naps = sleepers([1, 1])
    assert next(program_for(naps, SHAPE, "s0", 0).units(slot)).kind is UnitKind.sleep
