"""The proof for language workloads: every state that sessions, drafter and verifiers can reach is looked at.

What runs next depends on what was rejected, so there is no program to play. Instead the state machines themselves are
searched, depth first, with states that were seen before left out: every order in which messages are delivered, every
outcome of every window, and a drafter that is lost at any time. A search fails where

- a part raises, or breaks one of the promises that `SessionModel` checks: the text is the target's, the KV is that of
  the text, at most `depth` windows of a session are in flight and at most `passes` valid ones at the verifiers (with
  those that a rejection discarded, fewer than twice as many), nothing comes for a session that is closed;
- nothing can happen, and yet a session is not over;
- a state can be reached again from itself, so that a run need not end.

Otherwise every run ends, whatever its order. Sessions share nothing but the drafter that they lose.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from paceline.pipeline.speculation.session_model import Event, SearchCase, SessionModel
from paceline.pipeline.speculation.window import SpeculationError

__all__ = ["SearchFault", "SearchReport", "search"]

_Joint = tuple[int, ...]
"""The state of each session, by number"""
_Action = tuple[int | None, Event]
"""A session and what happens to it; None: to all"""
_Step = tuple[_Action, _Joint]
_BEGIN: _Action = (None, ("begin", 0))
_LOSSES = ("drafter is lost", "leader notices the loss")


class SearchFault(SpeculationError):
    """A state that must not be. `events` lead there from the beginning."""

    def __init__(self, what: str, events: list[str]) -> None:
        super().__init__(f"{what}; before that: {', '.join(events) or 'nothing'}")
        self.events = events


@dataclass(frozen=True, slots=True)
class SearchReport:
    """What was searched."""

    sessions: int
    states: int
    """states of all sessions together; those that differ in the order of the sessions count once"""
    session_states: int
    """states of one session"""
    most_outstanding: int
    """most windows of all sessions at the verifiers, discarded ones too"""


class _Automaton:
    """The states of one session by number, and what follows on which event; computed when asked for."""

    def __init__(self, case: SearchCase) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._models: list[SessionModel] = []
        self._next: dict[tuple[int, str, int], int] = {}
        self._events: dict[int, tuple[Event, ...]] = {}
        self.first = self._number(SessionModel(case))

    def __len__(self) -> int:
        return len(self._models)

    def __getitem__(self, number: int) -> SessionModel:
        return self._models[number]

    def events(self, number: int) -> tuple[Event, ...]:
        """What can happen in a state."""
        if number not in self._events:
            self._events[number] = tuple(self._models[number].events())
        return self._events[number]

    def after(self, number: int, event: Event) -> int:
        """The state behind an event."""
        at = (number, *event)
        if at not in self._next:
            self._next[at] = self._number(self._models[number].after(event))
        return self._next[at]

    def _number(self, model: SessionModel) -> int:
        number = self._numbers.setdefault(model.key(), len(self._models))
        if number == len(self._models):
            self._models.append(model)
        return number


def search(case: SearchCase, sessions: int = 1) -> SearchReport:
    """Look at every state. Raises `SearchFault` at the first that must not be."""
    automaton = _Automaton(case)
    start = (automaton.first,) * sessions
    done: set[_Joint] = set()
    open_states: set[_Joint] = {start}
    path: list[tuple[_Joint, Iterator[_Step], _Action]] = [(start, _steps(automaton, case, start), _BEGIN)]
    most = 0
    while path:
        state, steps, _ = path[-1]
        try:
            action, after = next(steps, (_BEGIN, None))
        except SpeculationError as error:
            raise SearchFault(str(error), [_name(action) for _, _, action in path[1:]]) from error
        if after is None:
            open_states.remove(state)
            done.add(state)
            path.pop()
        elif after in open_states:
            events = [_name(action) for _, _, action in path[1:]]
            raise SearchFault(f"a run need not end, as {_name(action)} leads back", events)
        elif after not in done:
            most = max(most, sum(automaton[number].outstanding for number in after))
            open_states.add(after)
            path.append((after, _steps(automaton, case, after), action))
    return SearchReport(sessions, len(done), len(automaton), most)


def _steps(automaton: _Automaton, case: SearchCase, state: _Joint) -> Iterator[_Step]:
    """What can happen, and the state behind it."""
    alive = False
    for session, number in enumerate(state):
        if session and number == state[session - 1]:
            continue
        for event in automaton.events(number):
            alive = True
            action = session, event
            try:
                after = automaton.after(number, event)
            except SpeculationError as error:
                raise SpeculationError(f"{_name(action)}: {error}") from error
            yield action, _sorted((*state[:session], after, *state[session + 1 :]))
    model = automaton[state[0]]
    over = all(automaton[number].ended for number in state)
    # A loss is noticed for certain, but that there is one is not to be waited for.
    if not (alive or over or (model.dead and not model.lost)):
        raise SpeculationError("nothing can happen, and a session is not over")
    if case.losses and not (over or model.lost):
        loss = (_LOSSES[model.dead], 0)
        yield (None, loss), _sorted(tuple(automaton.after(number, loss) for number in state))


def _sorted(state: tuple[int, ...]) -> _Joint:
    """Sessions are alike: states that differ in their order are one."""
    return tuple(sorted(state))


def _name(action: _Action) -> str:
    session, (event, choice) = action
    return event if session is None else f"session {session} {event}{f' ({choice})' if choice else ''}"
