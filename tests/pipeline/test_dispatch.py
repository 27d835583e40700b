"""The dispatcher: the smallest priority that is ready, streams in order, batches only of equal units."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.pipeline.dispatch import Dispatcher
from paceline.pipeline.program import Row, Unit, UnitKind
from paceline.pipeline.programs import program_for
from paceline.pipeline.topology import ContextMode
from tests.pipeline.nets import SHAPE, world

NET = world([[0], [1, "clean"]], mode=ContextMode.staggered)


def dispatcher(sessions: int, batch: int = 1) -> Dispatcher:
    programs = [program_for(NET, SHAPE, stage, s) for s in range(sessions) for stage in ("step0", "step1")]
    chosen = Dispatcher(programs, {"step0": batch, "step1": batch})
    for program in programs:
        program.finish(6)
    return chosen


@given(st.integers(1, 4), st.integers(0, 2**32))
def test_picks_the_smallest_priority_that_is_ready(sessions: int, seed: int) -> None:
    random = Random(seed)
    chosen = dispatcher(sessions)
    order: dict[tuple[str, int], list[Unit]] = {}
    while not chosen.done:
        ready = {id(unit) for unit in chosen.waiting() if random.random() < 0.5}
        picked = chosen.pick(lambda unit, ready=ready: id(unit) in ready)  # type: ignore[misc]
        if not ready:
            assert picked == []
            continue
        (stream,) = picked
        unit = stream.unit
        assert unit is not None
        assert unit.priority == min(u.priority for u in chosen.waiting() if id(u) in ready)
        order.setdefault((unit.stage, unit.session), []).append(unit)
        chosen.advance(stream)
    for (stage, session), units in order.items():
        assert units == list(program_for(NET, SHAPE, stage, session).units(stop=6))
    assert len(order) == 2 * sessions


def test_older_slots_come_first_then_later_steps_then_lower_sessions() -> None:
    def unit(slot: int, step: int, session: int) -> Unit:
        return Unit("step0", session, UnitKind.layers, slot, slot - step, (Row(slot - step, step),))

    expected = [unit(3, 0, 1), unit(4, 2, 0), unit(4, 2, 1), unit(4, 1, 0), unit(5, 2, 0)]
    shuffled = [expected[i] for i in (3, 0, 4, 2, 1)]
    assert sorted(shuffled, key=lambda u: u.priority) == expected


def test_a_receive_comes_before_passes_of_its_slot() -> None:
    receive = Unit("step0", 1, UnitKind.receive, 4, 4)
    row = Unit("step0", 0, UnitKind.layers, 4, 2, (Row(2, 2),))
    assert receive.priority < row.priority


@pytest.mark.parametrize(("batch", "size"), [(1, 1), (2, 2), (8, 3)])
def test_batches_hold_equal_units_of_several_sessions_up_to_the_limit(batch: int, size: int) -> None:
    chosen = dispatcher(3, batch)
    sizes = set()
    while not chosen.done:
        picked = chosen.pick(lambda unit: True)
        units = [stream.unit for stream in picked if stream.unit is not None]
        assert len({(u.stage, u.layers, u.kind, len(u.rows)) for u in units}) == 1
        assert len({u.session for u in units}) == len(units)
        assert units[0].kind is UnitKind.layers or len(units) == 1
        sizes.add(len(units))
        for stream in picked:
            chosen.advance(stream)
    assert max(sizes) == size


def test_nothing_ready_picks_nothing_and_done_means_all_ended() -> None:
    chosen = dispatcher(1)
    assert chosen.pick(lambda unit: False) == []
    assert not chosen.done
    assert len(chosen.waiting()) == 2
    while picked := chosen.pick(lambda unit: True):
        chosen.advance(picked[0])
    assert chosen.done
    assert chosen.waiting() == []
