"""The drafter's core, call by call."""

from __future__ import annotations

import pytest

from paceline.pipeline.speculation.drafter import Branch, DrafterCore, Rollback
from paceline.pipeline.speculation.hedge import Outcome, likeliest
from paceline.pipeline.speculation.window import Coupling, FinishReason, Policy, SpeculationError, Verdict, Window

_PROMPT = (7, 8, 9)


def _core(coupling: Coupling = Coupling.greedy, **options: object) -> DrafterCore:
    settings: dict[str, object] = {"window": 2, "depth": 2, "hedge": 0, "acceptance": (0.8,)}
    return DrafterCore(0, _PROMPT, 50, coupling, **(settings | options))  # type: ignore[arg-type]


def _verdict(
    tokens: tuple[int, ...], length: int, forwarded: int, *, rejected: bool = False, closed: int = -1,
    finish: FinishReason | None = None,
) -> Verdict:  # fmt: skip
    return Verdict(0, 0, 0, tokens, length, forwarded, 0, 0, rejected, closed, finish=finish)


def _draft(core: DrafterCore, *tokens: int) -> list[Window]:
    """Main-chain steps, each with two alternatives: 100 and 101 above the token."""
    windows = []
    for token in tokens:
        (branch,) = core.wants()
        assert branch.number == 0
        assert core.drafted(branch, token, ((token + 100, 0.7), (token + 101, 0.2)))
        while (window := core.ready()) is not None:
            windows.append(window)
    return windows


def test_windows_follow_one_another_until_the_depth() -> None:
    core = _core()
    assert core.wants() == [Branch(0, 0, 0, 3)]
    windows = _draft(core, 1, 2, 3, 4)
    assert windows == [Window(0, 0, 3, (1, 2), 0), Window(0, 0, 5, (3, 4), 0)]
    assert core.wants(5) == []
    # The eager token after the prompt agrees: nothing is undone. A verdict on the first window makes room.
    assert core.settled(_verdict((1,), 4, 3)) is None and core.wants() == []
    assert core.settled(_verdict((2, 3), 6, 5)) is None
    assert core.wants() == [Branch(0, 0, 0, 7)]


def test_a_difference_rolls_back_before_the_judge_says_so() -> None:
    core = _core()
    _draft(core, 1, 2, 3, 4)
    assert core.settled(_verdict((1,), 4, 3)) is None
    # All of the first window is right, and the eager token behind it is not what the second begins with.
    assert core.settled(_verdict((2, 9), 6, 5)) == Rollback(5, 1, None)
    assert core.wants() == [Branch(0, 1, 0, 6)] and core.sequence(core.wants()[0]) == [7, 8, 9, 1, 2, 9]
    assert _draft(core, 5, 6) == [Window(0, 1, 5, (9, 5, 6), 1)]
    # The acceptor's verdict on the stale window changes nothing any more.
    assert core.settled(_verdict((), 6, 5, rejected=True, closed=0)) is None
    assert core.epoch == 1 and core.inflight == 1


def test_a_step_that_comes_too_late_is_refused() -> None:
    core = _core()
    (branch,) = core.wants()
    core.settled(_verdict((1,), 4, 3))
    assert not core.drafted(branch, 1) and core.counters.obsolete == 1
    # The target was ahead: its token belongs to the next window, as known.
    assert _draft(core, 2, 3) == [Window(0, 0, 3, (1, 2, 3), 1)]


def test_hedges_are_drafted_for_the_likeliest_rejections() -> None:
    core = _core(hedge=2)
    _draft(core, 1, 2, 3, 4)
    first, second = core.wants(9)
    # Rejected at once: 0.2 * 0.7; at the second token: 0.8 * 0.2 * 0.7; the others are less likely.
    assert (first.base, first.tokens) == (3, (101,)) and (second.base, second.tokens) == (4, (102,))
    assert first.number != second.number and 0 not in (first.number, second.number)
    assert core.sequence(second) == [7, 8, 9, 1, 102]
    assert core.drafted(first, 50) and core.drafted(second, 60)
    assert [b.tokens for b in core.wants(9)] == [(101, 50), (102, 60)]
    assert core.settled(_verdict((1,), 4, 3)) is None
    # The one for position 3 is decided, the next takes its place.
    assert [(b.base, b.tokens) for b in core.wants(9)] == [(4, (102, 60)), (5, (103,))]
    rollback = core.settled(_verdict((102,), 5, 4, rejected=True, closed=0))
    assert rollback == Rollback(4, 1, second.number)
    assert core.counters.hedge_hits == 1 and core.counters.hedge_used == 1
    # The main chain goes on behind the hedge.
    assert core.wants() == [Branch(0, 1, 0, 6)]
    assert _draft(core, 61) == [Window(0, 1, 4, (102, 60, 61), 1)]


def test_a_complete_hedge_is_sent_at_once() -> None:
    core = _core(hedge=1)
    _draft(core, 1, 2, 3, 4)
    for token in (50, 51):
        assert core.drafted(core.wants()[0], token)
    assert core.wants() == []
    core.settled(_verdict((101,), 4, 3))
    assert core.ready() == Window(0, 1, 3, (101, 50, 51), 1)


def test_a_step_of_a_branch_that_became_the_main_chain_counts() -> None:
    core = _core(hedge=1)
    _draft(core, 1, 2, 3, 4)
    assert core.drafted(core.wants()[0], 50)
    (branch,) = core.wants()
    core.settled(_verdict((101,), 4, 3))
    assert core.drafted(branch, 51)
    assert core.ready() == Window(0, 1, 3, (101, 50, 51), 1)


def test_redraft_does_not_hedge() -> None:
    core = _core(hedge=4, policy=Policy.redraft)
    _draft(core, 1, 2, 3, 4)
    assert core.wants(4) == []


def test_alone_under_rejection_a_window_asks_for_a_bonus_token() -> None:
    core = _core(Coupling.rejection, depth=1, hedge=2)
    assert _draft(core, 1, 2) == [Window(0, 0, 3, (1, 2), 0, bonus=True)]
    # What the bonus token may be is drafted first, then continuations.
    (root, *_) = core.wants(3)
    assert root.base == 5 and root.tokens == () and root.number > 0
    assert core.drafted(root, 30, ((31, 0.5),))
    branches = core.wants(9)
    assert (branches[0].base, branches[0].tokens) == (5, (30,)), "0.8 ** 3 is the likeliest outcome"
    assert core.drafted(branches[0], 40)
    assert core.settled(_verdict((1, 2, 30), 6, 5, closed=0)) == Rollback(5, 1, branches[0].number)
    assert _draft(core, 41) == [Window(0, 1, 5, (30, 40, 41), 1, bonus=True)]


def test_under_rejection_a_sampled_token_ends_the_epoch_whatever_was_drafted() -> None:
    core = _core(Coupling.rejection)
    _draft(core, 1, 2)
    assert core.settled(_verdict((1,), 4, 3, closed=0)) == Rollback(3, 1, None)
    assert core.wants() == [Branch(0, 1, 0, 4)]


def test_the_plain_policy_waits_for_the_plain_token_under_rejection() -> None:
    core = _core(Coupling.rejection, policy=Policy.plain)
    _draft(core, 1, 2)
    core.settled(_verdict((5,), 4, 3, rejected=True, closed=0))
    assert core.wants(3) == []
    core.settled(_verdict((6,), 5, 4, closed=1))
    assert core.epoch == 2 and _draft(core, 1, 2) == [Window(0, 2, 4, (6, 1, 2), 1)]


def test_nothing_is_drafted_beyond_the_end() -> None:
    core = DrafterCore(0, _PROMPT, 6, Coupling.rejection, window=2, depth=4)
    assert [w.end for w in _draft(core, 1, 2, 3)] == [5, 6] and core.wants() == []
    core = _core(eos=(5,), window=4)
    assert _draft(core, 1, 5) == [Window(0, 0, 3, (1, 5), 0)] and core.wants() == []
    # Under rejection what is drafted must not decide when it is sent.
    core = _core(Coupling.rejection, eos=(5,), window=4)
    assert _draft(core, 1, 5) == [] and core.wants() == [Branch(0, 0, 0, 5)]
    core.settled(_verdict((), 3, 3, finish=FinishReason.cancelled))
    assert core.wants() == [] and core.ready() is None


def test_settings_change_at_any_time() -> None:
    core = _core(window=4)
    assert _draft(core, 1, 2, 3) == []
    core.tune(2, 3, 0)
    assert core.ready() == Window(0, 0, 3, (1, 2), 0) and core.ready() is None
    core.tune(0, 1, 0)
    assert core.wants() == [] and core.ready() is None
    with pytest.raises(SpeculationError, match="cannot be"):
        core.tune(1, 0, 0)


def test_a_later_start() -> None:
    core = DrafterCore(0, (*_PROMPT, 4), 50, Coupling.rejection, window=2, depth=2, forwarded=3, epoch=6)
    assert _draft(core, 1, 2) == [Window(0, 6, 3, (4, 1, 2), 1)]


def test_missing_verdicts_are_noticed() -> None:
    with pytest.raises(SpeculationError, match="were committed before"):
        _core().settled(_verdict((1,), 9, 8))


def test_the_likeliest_outcomes() -> None:
    chain = [(3, 0.5, ((10, 0.6), (11, 0.4))), (4, 0.9, ((12, 1.0),))]
    assert likeliest(chain, (5, ((13, 1.0),)), 3) == [
        Outcome(5, 13, 0.45),
        Outcome(3, 10, 0.3),
        Outcome(3, 11, 0.2),
    ]
