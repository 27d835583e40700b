"""The proof for language workloads: the search over the real state machines, and what it finds where one is broken."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from paceline.pipeline.speculation.acceptor import Acceptor
from paceline.pipeline.speculation.drafter import DrafterCore
from paceline.pipeline.speculation.search import SearchFault, search
from paceline.pipeline.speculation.session_model import SearchCase, SessionModel
from paceline.pipeline.speculation.state_copy import frozen
from paceline.pipeline.speculation.verify_scheduler import VerifyScheduler
from paceline.pipeline.speculation.window import Coupling, Policy

REJECTION = Coupling.rejection


@pytest.mark.parametrize(
    "case",
    [
        SearchCase(tokens=2, depth=3, passes=3),
        SearchCase(tokens=2, depth=1, passes=1, hedge=1),
        SearchCase(tokens=2, window=2, depth=2, passes=1, policy=Policy.redraft),
        SearchCase(tokens=2, depth=2, passes=1, policy=Policy.plain),
        SearchCase(REJECTION, tokens=2, depth=3, passes=3),
        SearchCase(REJECTION, Policy.plain, tokens=2, depth=1, passes=1, hedge=1),
        SearchCase(tokens=1, depth=2, passes=3, stops=True, eos=True),
        SearchCase(REJECTION, tokens=1, depth=2, passes=3, stops=True, switches=True),
    ],
    ids=str,
)
def test_every_run_of_one_session_ends_with_its_text(case: SearchCase) -> None:
    found = search(case)
    assert found.states == found.session_states > 100
    # At most `passes` of them are valid. Those before a rejection are discarded, and there are fewer of them.
    assert min(2, case.passes) <= found.most_outstanding <= 2 * case.passes - 1 + case.stops


@pytest.mark.parametrize("losses", [False, True])
def test_a_drafter_that_is_heard_of_needs_no_patience(losses: bool) -> None:
    """Without patience, the leader waits for windows as long as it takes: they come, or the loss is noticed."""
    for coupling in Coupling:
        assert search(SearchCase(coupling, tokens=2, patience=False, losses=losses)).states > 100


def test_every_run_of_two_sessions_ends() -> None:
    for coupling in (Coupling.gumbel, REJECTION):
        one, two = (search(SearchCase(coupling, tokens=1, depth=3, passes=3), sessions) for sessions in (1, 2))
        assert two.session_states == one.states
        assert two.most_outstanding == 2 * one.most_outstanding
        # Sessions are independent of one another, but lose their drafter at the same time.
        assert one.states**2 / 8 < two.states < one.states**2


@pytest.mark.exhaustive
@pytest.mark.parametrize("coupling", [Coupling.gumbel, REJECTION])
def test_two_sessions_three_deep(coupling: Coupling) -> None:
    found = search(SearchCase(coupling, tokens=2, depth=3, passes=3), sessions=2)
    assert found.states > 500_000
    assert found.most_outstanding <= 2 * (2 * 3 - 1)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "case",
    [
        SearchCase(tokens=3, depth=3, passes=3),
        SearchCase(tokens=3, window=2, depth=3, passes=3, policy=Policy.plain),
        SearchCase(tokens=2, depth=3, passes=3, hedge=2),
        SearchCase(tokens=2, depth=3, passes=3, eos=True),
        SearchCase(tokens=2, depth=3, passes=3, stops=True),
        SearchCase(tokens=2, depth=3, passes=3, switches=True),
        SearchCase(REJECTION, tokens=3, depth=3, passes=3),
        SearchCase(REJECTION, Policy.plain, tokens=3, depth=1, passes=1, hedge=2),
        SearchCase(REJECTION, tokens=2, depth=3, passes=3, eos=True, stops=True),
    ],
    ids=str,
)
def test_one_session_three_deep(case: SearchCase) -> None:
    assert search(case).most_outstanding <= 2 * case.passes - 1 + case.stops


# -- what a search finds -----------------------------------------------------------------------------------------------


def no_windows(core: DrafterCore) -> None:
    """A drafter that keeps its windows."""


def no_step(core: DrafterCore, *args: object) -> bool:
    """A drafter that forgets what it drafts."""
    return False


def no_rollback(scheduler: VerifyScheduler, verdict: object) -> None:
    """A scheduler that goes on behind a rejection as if nothing had been."""


def none_underway(scheduler: VerifyScheduler) -> int:
    """A scheduler that does not count what it gave."""
    return 0


def plain_at_once(scheduler: VerifyScheduler, now: float) -> bool:
    """A scheduler that decodes plainly while it may be waiting for its drafter; that changes no text."""
    return True


@pytest.mark.parametrize(
    ("owner", "name", "broken", "passes", "what"),
    [
        (DrafterCore, "ready", no_windows, 1, "nothing can happen, and a session is not over"),
        (DrafterCore, "drafted", no_step, 1, "a run need not end"),
        (VerifyScheduler, "_roll_back", no_rollback, 2, "KV ends at"),
        (VerifyScheduler, "underway", property(none_underway), 1, "discarded windows add up"),
        (Acceptor, "_kept", lambda acceptor, new: new, 1, "the acceptor's text|behind its end|nothing can happen"),
    ],
)
def test_a_broken_part_is_found(
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    broken: Callable[..., object] | property,
    passes: int,
    what: str,
) -> None:
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(SearchFault, match=what) as caught:
        search(SearchCase(tokens=2, depth=2, passes=passes, patience=False, losses=False))
    assert caught.value.events[0] == "session 0 open"


def test_plain_passes_change_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VerifyScheduler, "_plain_due", plain_at_once)
    assert search(SearchCase(tokens=2)).states > 100


@pytest.mark.parametrize("case", [SearchCase(hedge=2, stops=True, switches=True), SearchCase(REJECTION, hedge=1)])
def test_a_state_stays_as_it_is(case: SearchCase) -> None:
    """Events work on copies: whatever they change, the state before has its key, and its parts have theirs."""
    for seed in range(30):
        rng = random.Random(seed)
        state = SessionModel(case)
        while events := state.events():
            key = state.key()
            after = [state.after(event) for event in events]
            assert state.key() == key
            for model in (state, *after):
                assert model.keys == {name: frozen(getattr(model, name)) for name in model.keys}
            state = rng.choice(after)
        assert state.ended
