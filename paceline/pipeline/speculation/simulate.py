"""Speculation in virtual time: the same VerifyScheduler, Acceptor and DrafterCore as in a run, on modelled costs.

What is true at a position is fixed beforehand: the target's token, whether the drafter finds it (given a right prefix),
and at which rank among its alternatives the right one stands if not. So settings can be compared on the same text.
Verifier ranks are a line of layer runs; each holds one pass at a time, a pass takes windows of all sessions that have
one, and the ranks share its time evenly. The drafter steps all sessions that want a token together.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from paceline.pipeline.speculation.acceptor import Acceptor, Check
from paceline.pipeline.speculation.controller import OFF, Settings, ready_share
from paceline.pipeline.speculation.counters import Counters
from paceline.pipeline.speculation.drafter import Branch, DrafterCore
from paceline.pipeline.speculation.estimate import Estimates
from paceline.pipeline.speculation.hedge import Alternative, Hedge
from paceline.pipeline.speculation.simulation import Simulation, SpeculationReport, TokenLaw
from paceline.pipeline.speculation.verify_scheduler import DrafterState, VerifyScheduler
from paceline.pipeline.speculation.window import Verdict, Window

__all__ = ["simulate_speculation"]

_PROMPT = (0,)


def simulate_speculation(simulation: Simulation) -> SpeculationReport:
    """Runs until every session has its tokens."""
    return _Run(simulation).report()


class _ForcedCore(DrafterCore):
    """A drafter whose refills are ready by decree."""

    law: TokenLaw

    def _take(self, position: int) -> Hedge | None:
        if not self.law.forced(self.session, position):
            return super()._take(position)
        count = min(self.window, self.limit - position - 1)
        tokens = [self.law.drafted(self.session, position + 1 + i) for i in range(count)]
        self.counters.hedge_hits += 1
        return Hedge(self._hedges.new_number(), position, self._committed[position], tokens, [()] * count)


@dataclass(slots=True)
class _Session:
    scheduler: VerifyScheduler
    acceptor: Acceptor
    core: DrafterCore


@dataclass(frozen=True, slots=True)
class _Pass:
    windows: tuple[tuple[_Session, Window], ...]

    @property
    def tokens(self) -> int:
        return sum(len(w.tokens) for _, w in self.windows)


class _Run:
    def __init__(self, simulation: Simulation) -> None:
        self.s = simulation
        self.now = 0.0
        self.heap: list[tuple[float, int, Callable[[], None]]] = []
        self.count = 0
        self.sessions = [self._session(number) for number in range(simulation.sessions)]
        self.drafting = False
        self.queues: list[deque[_Pass]] = [deque() for _ in range(simulation.verifiers)]
        self.busy = [False] * simulation.verifiers
        self.drafter_busy = self.verifier_busy = 0.0
        self.woken: dict[int, float] = {}
        self.known: dict[tuple[int, int], tuple[int, list[Alternative]]] = {}
        self.committed = 0
        self.half: tuple[float, int] | None = None
        self.estimates = Estimates()
        self.looked: tuple[float, int] = (0.0, 0)
        self.accepted = (0, 0)
        if simulation.controller is not None:
            self._set(simulation.controller.settings)
        self._drafter()
        self._verifier(0)
        while self.heap:
            self.now, _, action = heapq.heappop(self.heap)
            action()
            if all(session.acceptor.finished for session in self.sessions):
                break

    def _session(self, number: int) -> _Session:
        s = self.s
        limit = len(_PROMPT) + s.tokens
        make = DrafterCore if s.law.forced_hit is None else _ForcedCore
        core = make(
            number, _PROMPT, limit, s.coupling, window=s.window, depth=s.depth,
            hedge=s.hedge if s.law.forced_hit is None else 0,
            policy=s.policy, acceptance=(s.law.acceptance,),
        )  # fmt: skip
        if isinstance(core, _ForcedCore):
            core.law = s.law
        state = DrafterState.on if s.window else DrafterState.off
        scheduler = VerifyScheduler(
            number, _PROMPT, s.coupling, depth=s.depth, policy=s.policy, patience=s.patience, drafter=state
        )
        return _Session(scheduler, Acceptor(number, _PROMPT, limit, s.coupling), core)

    def report(self) -> SpeculationReport:
        counters = Counters()
        tokens, right, positions = 0, 0, 0
        for number, session in enumerate(self.sessions):
            for part in (session.scheduler, session.acceptor, session.core):
                counters.add(part.counters)
            tokens += len(session.acceptor.tokens) - len(_PROMPT)
            for position in range(len(_PROMPT), len(session.acceptor.tokens)):
                right += self.s.law.drafted(number, position) == self.s.law.token(position)
                positions += 1
        each = self.s.verify(self.s.sessions) / self.s.sessions
        since, behind = self.half or (0.0, 0)
        settled = (tokens - behind) * each / (self.now - since)
        return SpeculationReport(
            self.now, tokens, tokens * each, right / positions, self.drafter_busy, self.verifier_busy, counters, settled
        )

    def _at(self, delay: float, action: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.heap, (self.now + delay, self.count, action))

    # -- the drafter ---------------------------------------------------------------------------------------------------

    def _drafter(self) -> None:
        if self.drafting:
            return
        wanted = [(x, branch) for x in self.sessions for branch in x.core.wants(self.s.branches)]
        if not wanted:
            return
        took = self.s.draft(len(wanted))
        self.estimates.draft.observe(len(wanted), took)
        self.drafting = True
        self.drafter_busy += took
        self._at(took, lambda: self._stepped(wanted))

    def _stepped(self, wanted: list[tuple[_Session, Branch]]) -> None:
        self.drafting = False
        for session, branch in wanted:
            session.core.drafted(branch, *self._true(branch.session, branch.position))
            self._send(session)
        self._drafter()

    def _true(self, session: int, position: int) -> tuple[int, list[Alternative]]:
        """What the law says of a position; hedges ask for the same ones again and again."""
        known = self.known.get((session, position))
        if known is None:
            law = self.s.law
            hedging = self.s.hedge > 0 or self.s.controller is not None
            named = law.alternatives(session, position) if hedging else []
            known = self.known[session, position] = law.drafted(session, position), named
        return known

    def _send(self, session: _Session) -> None:
        while (window := session.core.ready()) is not None:
            self._at(self.s.round_trip / 2, lambda w=window: self._offered(session, w))  # type: ignore[misc]

    # -- the verifier --------------------------------------------------------------------------------------------------

    def _offered(self, session: _Session, window: Window) -> None:
        session.scheduler.offer(window)
        self._verifier(0)

    def _verifier(self, rank: int) -> None:
        if self.busy[rank]:
            return
        if rank == 0 and not self.queues[0]:
            given = [(x, x.scheduler.next(self.now)) for x in self.sessions]
            windows = tuple((x, window) for x, window in given if window is not None)
            if windows:
                self.queues[0].append(_Pass(windows))
            self._wake()
        if not self.queues[rank]:
            return
        task = self.queues[rank].popleft()
        last = rank + 1 == self.s.verifiers
        idle = last and all(self._useless(x.acceptor, w) for x, w in task.windows)
        took = 0.0 if idle or task.tokens == 0 else self.s.verify(task.tokens) / self.s.verifiers
        if took:
            self.estimates.verify.observe(task.tokens, took * self.s.verifiers)
        self.busy[rank] = True
        self.verifier_busy += took if rank == 0 else 0.0
        self._at(took, lambda: self._passed(rank, task))

    def _useless(self, acceptor: Acceptor, window: Window) -> bool:
        """Whether the last rank sees beforehand that a pass would be for nothing: its window is stale, or the row
        carried over (the eager token, under a deterministic coupling) rejects its first token."""
        if acceptor.finished or window.epoch <= acceptor.closed:
            return True
        first = window.tokens[0] if window.drafted and window.known == 0 else None
        return first is not None and first != self.s.law.token(window.start)

    def _passed(self, rank: int, task: _Pass) -> None:
        self.busy[rank] = False
        if rank + 1 < self.s.verifiers:
            self.queues[rank + 1].append(task)
            self._verifier(rank + 1)
        else:
            for session, window in task.windows:
                self._told(session, self._judged(session, window))
        if rank:
            self._verifier(rank)
        self._verifier(0)

    def _judged(self, session: _Session, window: Window) -> Verdict:
        check = session.acceptor.plan(window)
        if check is None:
            return session.acceptor.dismiss(window, forwarded=True)
        return session.acceptor.settle(check, *self._ruled(check))

    def _ruled(self, check: Check) -> tuple[int, int | None, int | None]:
        token = self.s.law.token
        for index, drafted in enumerate(check.drafted):
            if drafted != token(check.position + index):
                return index, token(check.position + index), None
        return len(check.drafted), None, token(check.position + len(check.drafted)) if check.extra else None

    def _told(self, session: _Session, verdict: Verdict) -> None:
        session.scheduler.settled(verdict, self.now)
        self.committed += len(verdict.tokens)
        if self.half is None and 2 * self.committed >= self.s.tokens * self.s.sessions:
            self.half = self.now, self.committed
        self.estimates.acceptance.observe(verdict)
        self.accepted = self.accepted[0] + verdict.judged, self.accepted[1] + verdict.accepted
        self._control()
        self._at(self.s.round_trip / 2, lambda: self._heard(session, verdict))

    def _heard(self, session: _Session, verdict: Verdict) -> None:
        counters = session.core.counters
        hits, misses = counters.hedge_hits, counters.hedge_misses
        session.core.settled(verdict)
        if (counters.hedge_hits, counters.hedge_misses) != (hits, misses):
            core = session.core
            settings = Settings(core.window, core.depth, core.hedge)
            ready = ready_share(settings, self.estimates, self.s.sessions)
            hits_of = self.estimates.hits_alone if core.depth == 1 else self.estimates.hits
            hits_of.observe(counters.hedge_hits > hits, core.hedge, ready)
        self._send(session)
        self._drafter()

    # -- the controller ------------------------------------------------------------------------------------------------

    def _control(self) -> None:
        """Let the controller look, every so many tokens."""
        controller, (since, behind) = self.s.controller, self.looked
        new = self.committed - behind
        if controller is None or new < self.s.interval * self.s.sessions or self.now <= since:
            return
        self.looked = self.now, self.committed
        self.estimates.round_trip.observe(self.s.round_trip)
        each = self.estimates.verify.at(self.s.sessions) / self.s.sessions
        speedup = new * each / (self.now - since)
        share = self.accepted[1] / self.accepted[0] if self.accepted[0] else None
        self.accepted = (0, 0)
        controller.measured(speedup, self.estimates, self.s.sessions, share)
        before = controller.settings
        after = controller.choose(self.estimates, self.s.sessions)
        if after != before:
            self._set(after)

    def _set(self, settings: Settings) -> None:
        acceptance = self.estimates.acceptance.values(max(1, settings.window))
        for session in self.sessions:
            session.core.tune(settings.window, settings.depth, settings.hedge, acceptance)
            session.scheduler.depth = max(1, settings.depth)
            session.scheduler.set_drafter(DrafterState.off if settings == OFF else DrafterState.on)
            self._send(session)
        if settings != OFF:
            self._drafter()

    def _wake(self) -> None:
        """Come back when patience with a drafter runs out."""
        for number, session in enumerate(self.sessions):
            due = session.scheduler.due()
            if due is not None and due < float("inf") and self.woken.get(number) != due:
                self.woken[number] = due
                self._at(max(0.0, due - self.now), lambda: self._verifier(0))
