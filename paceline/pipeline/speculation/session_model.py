"""One session between a drafter and its verifiers as a finite transition system, for an exhaustive search.

The parts are those of a run: `DrafterCore`, `VerifyScheduler` and `Acceptor`. Around them are the FIFO routes that join
them, and the bookkeeping of the leader. Nothing has a time: an event happens now or later, and every order is a path.

The target's token at position p is p. The drafter drafts that token or another one, whichever the search chooses; so
the paths contain every outcome of every window. The last verifier's KV is a list of tokens, truncated and extended as a
verifier does it, and rows follow from it: a rollback that goes wrong is seen.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass

from paceline.pipeline.speculation.acceptor import Acceptor
from paceline.pipeline.speculation.drafter import DrafterCore
from paceline.pipeline.speculation.state_copy import copied, frozen
from paceline.pipeline.speculation.verify_scheduler import DrafterState, VerifyScheduler
from paceline.pipeline.speculation.window import Coupling, FinishReason, Policy, SpeculationError, Verdict, Window

__all__ = ["Event", "SearchCase", "SessionModel"]

Event = tuple[str, int]
"""What happens, and which of several outcomes it has."""

_PROMPT = (0,)
_WRONG = 1000
_PATIENCE = 1.0
_CHANGED_BY = {
    "core": ("drafter takes", "drafts the target's token", "drafts another token", "drafter is lost"),
    "scheduler": ("open", "leader takes", "leader goes on", "patience is over", "controller switches",
                  "leader takes verdict", "leader notices the loss"),
    "acceptor": ("open", "last verifier takes"),
}  # fmt: skip
"""The events that may change each part."""


@dataclass(frozen=True, slots=True)
class SearchCase:
    """What is searched. `window`, `depth` and `hedge` are the drafter's; `passes` is the number of valid windows that
    the leader keeps at the verifiers. The text has `tokens` tokens behind the prompt."""

    coupling: Coupling = Coupling.gumbel
    policy: Policy = Policy.hedge
    window: int = 1
    depth: int = 2
    hedge: int = 0
    passes: int = 1
    tokens: int = 3
    eos: bool = False
    """the text ends with an end token, before the session's limit"""
    patience: bool = True
    """the leader may decode plainly at any time that it is idle"""
    losses: bool = True
    """the drafter may be lost at any time"""
    stops: bool = False
    """a stop string may end the session at any committed token, and a failure at any time"""
    switches: bool = False
    """the controller may switch the drafter off once, and on again"""


class SessionModel:
    """A state of one session. `after` gives the state behind an event; this one stays as it is."""

    __slots__ = ("acceptor", "case", "core", "dead", "ending", "keys", "kv", "leader_tokens", "length", "live", "lost",
                 "opened", "scheduler", "settings", "switched", "to_drafter", "to_first", "to_last",
                 "to_leader")  # fmt: skip

    def __init__(self, case: SearchCase) -> None:
        self.case = case
        self.keys: dict[str, Hashable] = dict.fromkeys(_CHANGED_BY)
        """Of each part, the key of its state"""
        self.core: DrafterCore | None = None
        self.scheduler: VerifyScheduler | None = None
        self.acceptor: Acceptor | None = None
        self.opened = self.live = self.dead = self.lost = False
        """`dead`: the drafter is gone; `lost`: the leader knows it"""
        self.switched = 0
        self.settings = case.window
        """the window that the drafter was told to use"""
        self.ending: int | None = None
        self.length: int | None = None
        """the lengths at which the leader ended the session, and with which it was over"""
        self.leader_tokens: list[int] = []
        self.kv: list[int] = []
        self.to_drafter: deque[Verdict | str] = deque()
        self.to_leader: deque[Window] = deque()
        self.to_last: deque[Window | int] = deque()
        """windows, and the length at which the leader ends the session, -1 to close it"""
        self.to_first: deque[Verdict] = deque()

    @property
    def ended(self) -> bool:
        """Whether the session is over for all and no message is left."""
        routes = self.to_drafter or self.to_leader or self.to_last or self.to_first
        return self.opened and not (self.live or self.core or self.acceptor or routes)

    @property
    def outstanding(self) -> int:
        """Windows whose verdict is not at the leader yet, discarded ones too; and a stop, which has a verdict, too."""
        return sum(isinstance(message, Window) for message in self.to_last) + len(self.to_first)

    def events(self) -> list[Event]:
        """What can happen next."""
        if not self.opened:
            return [("open", 0)]
        case, found = self.case, [("drafter takes", 0)] if self.to_drafter else []
        if self.core is not None:
            core: DrafterCore = copied(self.core)  # which notes what it wants
            for index, branch in enumerate(core.wants(1 + 2 * case.hedge)):
                found.append(("drafts the target's token", index))
                # Behind a wrong token nothing is judged. There the token that would pass is the one to look at.
                if max(core.sequence(branch)) < _WRONG:
                    found.append(("drafts another token", index))
        if self.to_leader:
            found.append(("leader takes", 0))
        scheduler = self.scheduler
        if self.live and self.ending is None and scheduler is not None:
            if self._moves(scheduler, 0.0):
                found.append(("leader goes on", 0))
            elif case.patience and self._moves(scheduler, _PATIENCE):
                found.append(("patience is over", 0))
            if case.stops:
                found.append(("fails", 0))
            if case.switches and self.switched < 2 and not self.lost:
                found.append(("controller switches", 0))
        if self.to_last:
            found.append(("last verifier takes", 0))
        if self.to_first:
            stops = len(self.to_first[0].tokens) if case.stops and self.live and self.ending is None else 0
            found += [("leader takes verdict", stop) for stop in range(stops + 1)]
        return found

    def after(self, event: Event) -> SessionModel:
        """The state behind an event. Raises `SpeculationError` where it breaks a promise."""
        name, choice = event
        state = self._copy(name)
        match name:
            case "open":
                state._open()
            case "drafter takes":
                state._told(state.to_drafter.popleft())
            case "drafts the target's token" | "drafts another token":
                state._draft(choice, right=name == "drafts the target's token")
            case "leader takes":
                state._offered(state.to_leader.popleft())
            case "leader goes on" | "patience is over":
                state._give(0.0 if name == "leader goes on" else _PATIENCE)
            case "fails":
                state._stop(len(state.leader_tokens))
            case "controller switches":
                state._switch()
            case "last verifier takes":
                state._forward(state.to_last.popleft())
            case "leader takes verdict":
                state._judged(state.to_first.popleft(), choice)
            case "drafter is lost":
                state.dead, state.core = True, None
                state.to_drafter.clear()
            case "leader notices the loss":
                state.lost = True
                if state.live and state.scheduler is not None:
                    state.scheduler.set_drafter(DrafterState.lost)
        state._check()
        for part in _changed(name):
            state.keys[part] = frozen(getattr(state, part))
        return state

    def key(self) -> Hashable:
        """The same for states from which the same can happen."""
        parts = tuple(self.keys.values())
        routes = tuple(self.to_drafter), tuple(self.to_leader), tuple(self.to_last), tuple(self.to_first)
        flags = self.opened, self.live, self.dead, self.lost, self.switched, self.settings, self.ending, self.length
        return parts, routes, flags, len(self.leader_tokens), len(self.kv)

    def _copy(self, event: str) -> SessionModel:
        """A copy whose parts that an event changes are copies, too."""
        new = SessionModel.__new__(SessionModel)
        for name in SessionModel.__slots__:
            value = getattr(self, name)
            setattr(new, name, value.copy() if isinstance(value, (list, deque, dict)) else value)
        for part in _changed(event):
            setattr(new, part, copied(getattr(new, part)))
        return new

    # -- the drafter ---------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        case = self.case
        self.opened = self.live = True
        self.leader_tokens = list(_PROMPT)
        patience = _PATIENCE if case.patience else math.inf
        state = DrafterState.lost if self.lost else DrafterState.on
        self.scheduler = VerifyScheduler(
            0, _PROMPT, case.coupling, depth=case.passes, policy=case.policy, patience=patience, drafter=state
        )
        self.acceptor = Acceptor(0, _PROMPT, self._limit, case.coupling, self._eos)
        if not self.dead:
            self.to_drafter.append("open")

    def _told(self, message: Verdict | str) -> None:
        case = self.case
        if message == "open":
            self.core = DrafterCore(
                0, _PROMPT, self._limit, case.coupling, window=self.settings, depth=case.depth, hedge=case.hedge,
                policy=case.policy, eos=self._eos,
            )  # fmt: skip
        elif isinstance(message, str):
            self.settings = case.window if message == "on" else 0
            if self.core is not None:
                self.core.tune(self.settings, case.depth, case.hedge)
        elif self.core is not None:
            self.core.settled(message)
            if self.core.finished is not None:
                _expect(self.core.length == message.length, "the drafter ends with another length than the session")
                self.core = None
        self._send()

    def _draft(self, index: int, right: bool) -> None:
        core = self.core
        if core is None:
            raise SpeculationError("a drafter that is closed drafts")
        branch = core.wants(1 + 2 * self.case.hedge)[index]
        token = branch.position + (0 if right else _WRONG)
        others = [(branch.position + (_WRONG if right else 0), 1.0)] if self.case.hedge else []
        core.drafted(branch, token, others)
        self._send()

    def _send(self) -> None:
        while self.core is not None and (window := self.core.ready()) is not None:
            _expect(window.end <= self._limit and bool(window.drafted), "a window is empty or beyond the limit")
            self.to_leader.append(window)

    # -- the leader ----------------------------------------------------------------------------------------------------

    def _offered(self, window: Window) -> None:
        if self.live and not self.lost and self.scheduler is not None:
            self.scheduler.offer(window)

    @staticmethod
    def _moves(scheduler: VerifyScheduler, now: float) -> bool:
        """Whether the scheduler gives a window, or discards some."""
        tried: VerifyScheduler = copied(scheduler)
        return tried.next(now) is not None or frozen(tried) != frozen(scheduler)

    def _give(self, now: float) -> None:
        if self.scheduler is not None and (window := self.scheduler.next(now)) is not None:
            self.to_last.append(window)

    def _stop(self, length: int) -> None:
        self.ending = length
        self.to_last.append(length)

    def _switch(self) -> None:
        self.switched += 1
        on = self.switched % 2 == 0
        if self.scheduler is not None:
            self.scheduler.set_drafter(DrafterState.on if on else DrafterState.off)
        if not self.dead:
            self.to_drafter.append("on" if on else "off")

    def _judged(self, verdict: Verdict, stop: int) -> None:
        """`stop`: 0, or that the session ends with this one of the new tokens."""
        if not self.live or self.scheduler is None:
            return
        before = len(self.leader_tokens)
        self.scheduler.settled(verdict, 0.0)
        if self.ending is None:
            self.leader_tokens += verdict.tokens
        if not self.dead and not self.lost:
            self.to_drafter.append(verdict)
        if stop and verdict.finish is None:
            self._stop(before + stop)
        elif verdict.finish is not None:
            length = before + stop if stop else self.ending or verdict.length
            del self.leader_tokens[length:]
            self.length, self.live = length, False
            self.to_last.append(-1)

    # -- the last verifier ---------------------------------------------------------------------------------------------

    def _forward(self, message: Window | int) -> None:
        acceptor = self.acceptor
        if acceptor is None:
            raise SpeculationError("a message comes for a session that is closed")
        if isinstance(message, int):
            if message < 0:
                self.acceptor = None
            elif acceptor.finished is None:
                self.to_first.append(acceptor.finish(FinishReason.stop, message))
            return
        check = acceptor.plan(message)
        if check is None:
            self.to_first.append(acceptor.dismiss(message))
            return
        _expect(len(self.kv) >= message.start, "a window starts behind the KV")
        self.kv[message.start :] = message.tokens
        for index, token in enumerate(check.drafted):
            if token != check.position + index:
                verdict = acceptor.settle(check, index, check.position + index, None)
                break
        else:
            extra = check.position + len(check.drafted) if check.extra else None
            verdict = acceptor.settle(check, len(check.drafted), None, extra)
        del self.kv[verdict.forwarded :]
        _expect(self.kv == acceptor.tokens[: verdict.forwarded], "the KV is not that of the text")
        self.to_first.append(verdict)

    # -- what holds everywhere -----------------------------------------------------------------------------------------

    @property
    def _end(self) -> int:
        return len(_PROMPT) + self.case.tokens

    @property
    def _limit(self) -> int:
        return self._end + self.case.window + 1 if self.case.eos else self._end

    @property
    def _eos(self) -> frozenset[int]:
        return frozenset({self._end - 1}) if self.case.eos else frozenset()

    def _check(self) -> None:
        case = self.case
        _expect(self.leader_tokens == list(range(len(self.leader_tokens))), "the text is not that of the target")
        _expect(len(self.leader_tokens) <= self._end, "the text goes on behind its end")
        if self.core is not None:
            _expect(self.core.inflight <= case.depth, "the drafter has more windows in flight than its depth")
        if self.acceptor is not None:
            _expect(
                self.acceptor.tokens == list(range(len(self.acceptor.tokens))), "the acceptor's text is another one"
            )
        if self.live and self.scheduler is not None:
            _expect(self.scheduler.underway <= case.passes, "more valid windows are under way than allowed")
            _expect(self.outstanding <= 2 * case.passes - 1 + case.stops, "discarded windows add up")
        if not self.live and self.opened:
            whole = self.length if case.stops else self._end
            _expect(len(self.leader_tokens) == self.length == whole, "the session ends with another length")


def _changed(event: str) -> list[str]:
    return [part for part, events in _CHANGED_BY.items() if event in events]


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise SpeculationError(what)
