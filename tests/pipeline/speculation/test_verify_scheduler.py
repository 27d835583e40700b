"""The scheduler, call by call."""

from __future__ import annotations

import pytest

from paceline.pipeline.speculation.acceptor import Acceptor
from paceline.pipeline.speculation.verify_scheduler import DrafterState, Resume, VerifyScheduler
from paceline.pipeline.speculation.window import Coupling, FinishReason, Policy, SpeculationError, Verdict, Window

_PROMPT = (7, 8, 9)


def _window(start: int, *tokens: int, known: int = 0, epoch: int = 0, bonus: bool = False) -> Window:
    return Window(0, epoch, start, tokens, known, bonus)


def _verdict(
    of: Window | None, tokens: tuple[int, ...], length: int, forwarded: int, *, rejected: bool = False,
    closed: int = -1, finish: FinishReason | None = None,
) -> Verdict:  # fmt: skip
    epoch, start = (of.epoch, of.start) if of else (0, 0)
    return Verdict(0, epoch, start, tokens, length, forwarded, 0, 0, rejected, closed, finish=finish)


def _prefilled(coupling: Coupling = Coupling.greedy, **options: object) -> VerifyScheduler:
    scheduler = VerifyScheduler(0, _PROMPT, coupling, **options)  # type: ignore[arg-type]
    prompt = scheduler.next(0.0)
    assert prompt is not None and prompt.tokens == _PROMPT and prompt.known == 3
    eager = (1,) if coupling.deterministic or prompt.bonus else ()
    closed = 0 if eager and not coupling.deterministic else -1
    scheduler.settled(_verdict(prompt, eager, 3 + len(eager), 3, closed=closed), 1.0)
    return scheduler


def test_windows_are_given_in_order_up_to_the_depth() -> None:
    scheduler = _prefilled(depth=2)
    for start in (3, 5, 7):
        scheduler.offer(_window(start, 1, 2))
    given = [scheduler.next(1.0), scheduler.next(1.0)]
    assert [w.start for w in given if w] == [3, 5]
    # The first token of the first was committed eagerly before: it is known by now.
    assert given[0] is not None and given[0].known == 1 and given[0].offset == 1
    assert scheduler.next(1.0) is None and scheduler.underway == 2
    scheduler.settled(_verdict(given[0], (2, 1), 6, 5), 2.0)
    third = scheduler.next(2.0)
    assert third is not None and third.start == 7


def test_an_eager_token_that_differs_makes_what_is_under_way_stale() -> None:
    scheduler = _prefilled(depth=2)
    first, second = _window(3, 1, 2), _window(5, 3, 4)
    for window in (first, second, _window(7, 5, 6)):
        scheduler.offer(window)
    given = [scheduler.next(1.0), scheduler.next(1.0)]
    scheduler.settled(_verdict(given[0], (2, 9), 6, 5), 2.0)
    assert scheduler.underway == 0 and not scheduler.drained
    assert scheduler.next(2.0) is None
    assert scheduler.counters.stale_drafted == 2
    # Its place in the pipeline is free for the new epoch, although its verdict has not come.
    scheduler.offer(_window(5, 9, 4, known=1, epoch=1))
    new = scheduler.next(2.0)
    assert new is not None and (new.start, new.epoch) == (5, 1)
    scheduler.settled(_verdict(given[1], (), 6, 5, rejected=True, closed=0), 3.0)
    assert scheduler.underway == 1


def test_plain_after_a_rejection_by_policy() -> None:
    scheduler = _prefilled(depth=2, policy=Policy.plain)
    scheduler.offer(_window(3, 1, 2))
    given = scheduler.next(1.0)
    scheduler.settled(_verdict(given, (5,), 5, 4, rejected=True, closed=0), 2.0)
    plain = scheduler.next(2.0)
    assert plain == _window(4, 5, known=1, epoch=1, bonus=True)
    # Late for its first token, not for the others: they are judged by the row that the plain pass leaves.
    scheduler.offer(_window(4, 5, 6, 7, known=1, epoch=1))
    assert scheduler.next(2.0) == _window(5, 6, 7, epoch=1)


def test_patience_runs_out_and_comes_back() -> None:
    scheduler = _prefilled(patience=10.0)
    assert scheduler.due() == 11.0
    assert scheduler.next(10.9) is None
    plain = scheduler.next(11.0)
    assert plain == _window(3, 1, known=1, bonus=True)
    assert scheduler.due() is None and scheduler.drafter is DrafterState.silent and scheduler.counters.fallbacks == 1
    scheduler.settled(_verdict(plain, (2,), 5, 4), 12.0)
    # A silent drafter is not waited for again ...
    plain = scheduler.next(12.0)
    assert plain is not None
    scheduler.settled(_verdict(plain, (3,), 6, 5), 13.0)
    # ... until it says something. What is too late is compared and cut off.
    scheduler.offer(_window(3, 1, 2, 3, 4))
    trimmed = scheduler.next(13.0)
    assert trimmed == Window(0, 0, 5, (3, 4), 1, offset=3)
    assert scheduler.counters.late == 3 and scheduler.drafter is DrafterState.on


def test_a_late_window_that_differs_is_discarded_and_closes_its_epoch() -> None:
    scheduler = _prefilled(patience=1.0)
    plain = scheduler.next(5.0)
    assert plain is not None
    scheduler.settled(_verdict(plain, (2,), 5, 4), 6.0)
    scheduler.offer(_window(3, 1, 3, 3))
    scheduler.offer(_window(6, 3, 3))
    assert scheduler.next(6.0) is None and scheduler.counters.stale_drafted == 5


def test_under_rejection_a_plain_pass_holds_all_windows_back() -> None:
    scheduler = _prefilled(Coupling.rejection, patience=1.0, depth=3)
    plain = scheduler.next(5.0)
    assert plain == _window(3, bonus=True)
    scheduler.offer(_window(3, 1, 2))
    assert scheduler.next(5.0) is None
    scheduler.settled(_verdict(plain, (1,), 4, 3, closed=0), 6.0)
    # Although the token is the same: its window is over.
    assert scheduler.next(6.0) is None and scheduler.counters.stale_drafted == 2
    scheduler.offer(_window(3, 1, 2, known=1, epoch=1))
    assert scheduler.next(6.0) == _window(3, 1, 2, known=1, epoch=1)


def test_without_a_drafter_the_prompt_gives_a_token() -> None:
    for state in (DrafterState.off, DrafterState.lost):
        scheduler = _prefilled(Coupling.rejection, drafter=state)
        assert scheduler.next(1.0) == _window(3, 1, known=1, epoch=1, bonus=True)


def test_a_new_drafter_begins_where_the_lost_one_left() -> None:
    scheduler = _prefilled(Coupling.rejection)
    scheduler.offer(_window(3, 1, 2))
    scheduler.offer(_window(5, 3, 4))
    given = scheduler.next(1.0)
    scheduler.set_drafter(DrafterState.lost)
    assert scheduler.counters.stale_drafted == 2 and scheduler.resume() is None
    scheduler.settled(_verdict(given, (1, 2), 5, 5), 2.0)
    assert scheduler.resume() == Resume((7, 8, 9, 1, 2), 5, 1)
    plain = scheduler.next(2.0)
    assert plain == _window(5, epoch=1, bonus=True)


def test_a_long_prompt_goes_in_chunks() -> None:
    scheduler = VerifyScheduler(0, range(10), Coupling.greedy, chunk=4, depth=9)
    scheduler.offer(_window(10, 1, 2))
    given = [scheduler.next(0.0) for _ in range(5)]
    assert [(w.start, w.end) for w in given if w] == [(0, 4), (4, 8), (8, 10), (10, 12)]


def test_the_end_ends_all() -> None:
    scheduler = _prefilled()
    scheduler.offer(_window(3, 1, 2))
    scheduler.next(1.0)
    scheduler.offer(_window(5, 1, 2))
    scheduler.settled(_verdict(None, (), 4, 3, finish=FinishReason.cancelled), 1.0)
    assert scheduler.next(99.0) is None and scheduler.due() is None and scheduler.finished is FinishReason.cancelled
    assert scheduler.resume() is None and scheduler.counters.stale_drafted == 2


def test_what_cannot_follow_is_refused() -> None:
    scheduler = _prefilled()
    scheduler.offer(_window(4, 1, 2))
    with pytest.raises(SpeculationError, match="starts at 4, but what was given ends at 3"):
        scheduler.next(1.0)
    with pytest.raises(SpeculationError, match="no window is under way"):
        scheduler.settled(_verdict(None, (), 3, 3), 1.0)
    scheduler = _prefilled(depth=2)
    scheduler.offer(_window(3, 1, 2))
    scheduler.offer(_window(5, 1, 2))
    scheduler.next(1.0)
    second = scheduler.next(1.0)
    with pytest.raises(SpeculationError, match="oldest under way"):
        scheduler.settled(_verdict(second, (), 4, 3), 1.0)
    with pytest.raises(SpeculationError, match="below 1"):
        VerifyScheduler(0, (), Coupling.greedy)


def test_a_session_whose_beginning_is_in_the_kv_goes_on_behind_it() -> None:
    scheduler = VerifyScheduler(0, [1, 2, 3, 4], Coupling.gumbel, drafter=DrafterState.off, chunk=2, forwarded=3)
    acceptor = Acceptor(0, [1, 2, 3, 4], 8, Coupling.gumbel, forwarded=3)
    window = scheduler.next(0.0)
    assert window is not None and window == Window(0, 0, 3, (4,), 1, bonus=True)
    check = acceptor.plan(window)
    assert check is not None and check.extra
    scheduler.settled(acceptor.settle(check, 0, None, 9), 0.0)
    assert scheduler.next(0.0) == Window(0, 0, 4, (9,), 1, bonus=True)
    for forwarded in (-1, 4):
        with pytest.raises(SpeculationError, match="one is left"):
            VerifyScheduler(0, [1, 2, 3, 4], Coupling.gumbel, forwarded=forwarded)
