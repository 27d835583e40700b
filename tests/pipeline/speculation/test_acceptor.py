"""The acceptor, window by window."""

from __future__ import annotations

import pytest

from paceline.pipeline.speculation.acceptor import Acceptor
from paceline.pipeline.speculation.window import Coupling, FinishReason, SpeculationError, Window

_PROMPT = (7, 8, 9)


def _window(start: int, *tokens: int, known: int = 0, epoch: int = 0, bonus: bool = False) -> Window:
    return Window(0, epoch, start, tokens, known, bonus)


def _prefilled(coupling: Coupling, limit: int = 50, eos: tuple[int, ...] = (), extra: int | None = None) -> Acceptor:
    acceptor = Acceptor(0, _PROMPT, limit, coupling, eos)
    check = acceptor.plan(_window(0, *_PROMPT, known=3))
    assert check is not None and check.drafted == () and check.extra is coupling.deterministic
    acceptor.settle(check, 0, None, 1 if coupling.deterministic else None)
    return acceptor


def test_an_eager_token_judges_the_next_windows_first() -> None:
    acceptor = _prefilled(Coupling.greedy)
    assert acceptor.tokens == [7, 8, 9, 1] and acceptor.forwarded == 3
    check = acceptor.plan(_window(3, 1, 2, 3))
    assert check is not None
    assert (check.known, check.drafted, check.extra, list(check.rows)) == (1, (2, 3), True, [0, 1, 2])
    verdict = acceptor.settle(check, 2, None, 4)
    assert (verdict.tokens, verdict.accepted, verdict.judged, verdict.length) == ((2, 3, 4), 3, 3, 7)
    assert (verdict.drafted, verdict.forwarded, verdict.rejected, verdict.closed) == (2, 6, False, -1)
    # The next one in flight guessed another token than 4: rejected, and no pass is needed for that.
    wrong = _window(6, 5, 6)
    assert acceptor.plan(wrong) is None
    verdict = acceptor.dismiss(wrong)
    assert (verdict.tokens, verdict.accepted, verdict.judged, verdict.rejected) == ((), 0, 1, True)
    assert verdict.closed == 0 and acceptor.counters.stale_drafted == 1
    behind = _window(8, 5, 5)
    assert acceptor.plan(behind) is None
    assert acceptor.dismiss(behind, forwarded=True).judged == 0
    assert (acceptor.counters.stale_drafted, acceptor.counters.stale_verified) == (3, 2)
    check = acceptor.plan(_window(6, 4, 6, known=1, epoch=1))
    assert check is not None and check.drafted == (6,)


def test_a_rejection_closes_the_epoch() -> None:
    acceptor = _prefilled(Coupling.gumbel)
    check = acceptor.plan(_window(3, 1, 2, 3, 4))
    assert check is not None
    verdict = acceptor.settle(check, 1, 6, None)
    assert (verdict.tokens, verdict.accepted, verdict.judged) == ((2, 6), 2, 3)
    assert (verdict.forwarded, verdict.length, verdict.rejected, verdict.closed) == (5, 6, True, 0)
    assert acceptor.counters.censored == 1
    assert acceptor.counters.acceptance_by_position == [1.0, 1.0, 0.0]


def test_rejection_judges_by_the_row_carried_over() -> None:
    acceptor = _prefilled(Coupling.rejection)
    assert acceptor.tokens == list(_PROMPT)
    check = acceptor.plan(_window(3, 1, 2))
    assert check is not None and check.carry and list(check.rows) == [-1, 0] and not check.extra
    verdict = acceptor.settle(check, 2, None, None)
    assert (verdict.tokens, verdict.forwarded, verdict.length, verdict.closed) == ((1, 2), 5, 5, -1)
    # Without a drafter a window without tokens samples from that row, and its epoch is over.
    check = acceptor.plan(_window(5, bonus=True))
    assert check is not None and check.plain and list(check.rows) == [-1]
    verdict = acceptor.settle(check, 0, None, 3)
    assert (verdict.tokens, verdict.forwarded, verdict.length, verdict.closed) == ((3,), 5, 6, 0)
    assert acceptor.plan(_window(5, 3, 4)) is None


def test_a_bonus_closes_the_epoch_under_rejection() -> None:
    acceptor = _prefilled(Coupling.rejection)
    check = acceptor.plan(_window(3, 1, 2, bonus=True))
    assert check is not None and check.extra and not check.plain and list(check.rows) == [-1, 0, 1]
    assert acceptor.settle(check, 2, None, 9).closed == 0


def test_a_first_draft_rejected_before_its_pass_ran_wasted_no_pass() -> None:
    acceptor = _prefilled(Coupling.rejection)
    check = acceptor.plan(_window(3, 1, 2, 3))
    assert check is not None
    verdict = acceptor.settle(check, 0, 5, None, forwarded=False)
    assert (verdict.forwarded, verdict.length) == (3, 4)
    assert (acceptor.counters.censored, acceptor.counters.stale_drafted, acceptor.counters.stale_verified) == (0, 2, 0)


@pytest.mark.parametrize("coupling", list(Coupling))
def test_the_end_of_text_ends_the_session(coupling: Coupling) -> None:
    acceptor = _prefilled(coupling, eos=(5,))
    acceptor.tokens[3:] = []
    check = acceptor.plan(_window(3, 4, 5, 6))
    assert check is not None
    extra = 1 if check.extra else None
    verdict = acceptor.settle(check, 3, None, extra)
    assert (verdict.tokens, verdict.finish, verdict.accepted) == ((4, 5), FinishReason.eos, 3)
    assert acceptor.plan(_window(6, 1, epoch=9)) is None
    assert acceptor.dismiss(_window(6, 1, epoch=9)).finish is FinishReason.eos


@pytest.mark.parametrize("coupling", list(Coupling))
def test_no_session_grows_over_its_limit(coupling: Coupling) -> None:
    acceptor = _prefilled(coupling, limit=5)
    first = acceptor.tokens[3:] + [1] * (1 - len(acceptor.tokens[3:]))
    check = acceptor.plan(_window(3, *first, 2, 3, 4, bonus=True))
    assert check is not None and check.position + len(check.drafted) == 5 and not check.extra
    verdict = acceptor.settle(check, len(check.drafted), None, None)
    assert (verdict.length, verdict.finish) == (5, FinishReason.length)


def test_a_session_is_ended_from_outside() -> None:
    acceptor = _prefilled(Coupling.greedy)
    verdict = acceptor.finish(FinishReason.stop, 4)
    assert (verdict.finish, verdict.length, verdict.tokens) == (FinishReason.stop, 4, ())
    with pytest.raises(SpeculationError, match="cannot end at 9"):
        acceptor.finish(FinishReason.stop, 9)


def test_a_prompt_in_chunks_samples_at_its_end_only() -> None:
    acceptor = Acceptor(0, _PROMPT, 50, Coupling.greedy)
    check = acceptor.plan(_window(0, 7, 8, known=2))
    assert check is not None and not check.extra and not check.rows
    assert acceptor.settle(check, 0, None, None).forwarded == 2
    check = acceptor.plan(_window(2, 9, known=1))
    assert check is not None and check.extra


def test_what_cannot_follow_is_refused() -> None:
    acceptor = _prefilled(Coupling.greedy)
    with pytest.raises(SpeculationError, match="starts at 5, but the KV ends at 3"):
        acceptor.plan(_window(5, 1))
    with pytest.raises(SpeculationError, match="was said to be known"):
        acceptor.plan(_window(3, 2, known=1))
    with pytest.raises(SpeculationError, match="knows 2 token"):
        acceptor.plan(_window(3, 1, 2, known=2))
    check = acceptor.plan(_window(3, 1, 2))
    assert check is not None
    for outcome in ((2, None, None), (0, None, None), (1, None, None), (1, 3, None), (0, 1, 1)):
        with pytest.raises(SpeculationError):
            acceptor.settle(check, *outcome)
    acceptor.settle(check, 0, 4, None)
    with pytest.raises(SpeculationError, match="one window at a time"):
        acceptor.settle(check, 0, 4, None)
    with pytest.raises(SpeculationError, match="room for one more"):
        Acceptor(0, _PROMPT, 3, Coupling.greedy)
    sampled = _prefilled(Coupling.rejection)
    sampled.tokens.append(1)
    with pytest.raises(SpeculationError, match="epoch was not closed"):
        sampled.plan(_window(3, 1, 2))
