"""What is late, what is repeated, what is cut: against the definitions, and under any times."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from paceline.pipeline.deadline import Decisions, Pacer
from paceline.pipeline.topology import LatePolicy


def pacer(policy: LatePolicy, steps: int = 2, replayed: Decisions | None = None) -> Pacer:
    """25 frames a second."""
    return Pacer(0.04, policy, steps, replayed)


def test_the_display_starts_with_the_first_frame() -> None:
    p = pacer(LatePolicy.wait)
    assert p.emit_at(0) is None
    p.emit(0, 10.0)
    assert p.emit_at(3) == 10.0 + 3 * 0.04
    # The first frame took 70 ms, so frame i is due 70 ms after its action.
    first = p.show(0, 10.07)
    assert (first.due_s, first.late_s) == (10.07, 0.0)
    shown = p.show(1, 10.12)
    assert math.isclose(shown.due_s, 10.11)
    assert math.isclose(shown.late_s, 0.01)
    assert p.show(2, 10.14).late_s == 0.0


def test_a_quick_first_frame_leaves_one_period() -> None:
    p = pacer(LatePolicy.wait)
    p.emit(0, 0.0)
    p.show(0, 0.001)
    assert p.show(1, 0.08).late_s == 0.0
    assert p.show(2, 0.1201).late_s > 0.0


def test_repeat_slips_all_that_follows() -> None:
    p = pacer(LatePolicy.repeat)
    p.emit(0, 0.0)
    p.show(0, 0.04)
    late = p.show(1, 0.17)  # due at 0.08: the ticks at 0.08, 0.12 and 0.16 showed frame 0
    assert late.repeats == 3
    assert math.isclose(p.show(2, 0.20).due_s, 0.04 + (2 + 3) * 0.04)


def test_fewer_steps_in_proportion_to_the_lag() -> None:
    for steps, lag, first in (
        (2, 0.0, 0),
        (2, 0.009, 0),
        (2, 0.02, 1),
        (2, 1.0, 1),
        (4, 0.02, 1),
        (4, 0.039, 2),
        (8, 0.039, 4),
    ):
        p = pacer(LatePolicy.fewer_steps, steps)
        p.emit(0, 0.0)
        assert p.emit(5, 5 * 0.04 + lag) == first, (steps, lag)


def test_other_policies_never_cut_steps() -> None:
    for policy in (LatePolicy.wait, LatePolicy.repeat):
        p = pacer(policy, 8)
        p.emit(0, 0.0)
        assert p.emit(1, 100.0) == 0


@given(st.lists(st.floats(0, 0.3), min_size=1, max_size=30))
def test_a_replay_takes_the_decisions_again_whatever_its_times(lags: list[float]) -> None:
    live = pacer(LatePolicy.fewer_steps, 4)
    decided = [live.emit(index, index * 0.04 + lag) for index, lag in enumerate(lags)]
    again = pacer(LatePolicy.fewer_steps, 4, Decisions({index: first for index, first in enumerate(decided) if first}))
    assert [again.emit(index, 0.0) for index in range(len(lags))] == decided
    assert all(0 <= first < 4 for first in decided)


@given(st.lists(st.floats(0, 0.3), min_size=1, max_size=30), st.booleans())
def test_a_replay_repeats_frames_as_often_whatever_its_times(lags: list[float], deadline: bool) -> None:
    live = pacer(LatePolicy.repeat)
    times = [index * 0.04 + lag for index, lag in enumerate(lags)]
    live.emit(0, 0.0)
    decided = [live.show(index, at) for index, at in enumerate(times)]
    taken = Decisions(repeat={index: shown.repeats for index, shown in enumerate(decided) if shown.repeats})
    again = Pacer(0.04 if deadline else None, LatePolicy.repeat, 2, taken)
    again.emit(0, 0.0)
    repeated = [again.show(index, 7.0 * index) for index in range(len(lags))]
    assert [shown.repeats for shown in repeated] == [shown.repeats for shown in decided]
    if deadline and len(lags) > 1:
        # What follows slips by as many periods as before.
        slip = sum(shown.repeats for shown in decided[:-1])
        assert math.isclose(repeated[-1].due_s, repeated[0].due_s + (len(lags) - 1 + slip) * 0.04)


def test_without_a_deadline_nothing_is_late() -> None:
    p = Pacer(None, LatePolicy.wait, 2)
    p.emit(0, 0.0)
    assert p.emit_at(1) is None
    assert math.isnan(p.show(0, 99.0).due_s)
    assert p.show(1, 999.0).late_s == 0.0
