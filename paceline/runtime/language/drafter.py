"""The drafter: drafts for all sessions whatever is most useful, and never waits for a verdict."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from paceline.pipeline.speculation.drafter import Branch, DrafterCore, Rollback
from paceline.pipeline.speculation.window import Verdict
from paceline.runtime.actor import Done, Work
from paceline.runtime.endpoint import Endpoint
from paceline.runtime.language.actor import LanguageActor
from paceline.runtime.language.messages import (
    Drafted,
    Message,
    SessionStart,
    Settings,
    StatsReport,
    StatsRequest,
    first_settings,
)
from paceline.runtime.spec import GenerateSpec
from paceline.runtime.timeline import Span
from paceline.stages.lm.drafter import DraftStage, can_hedge

__all__ = ["DrafterActor"]

_ROWS = 16
"""Branches of one forward: beyond this a row costs as much as it would alone."""
_OTHERS = 3
"""Alternatives of a drafted token that hedges are chosen from."""
_TOLD = 64
"""Measurements kept until the leader asks for them; older ones are forgotten."""


class DrafterActor(LanguageActor):
    """Runs the drafter's cores and its stage."""

    role = "drafter"

    def __init__(
        self,
        spec: GenerateSpec,
        rank: int,
        endpoint: Endpoint,
        notify: Callable[[], None],
        name: str,
        stage: DraftStage,
        eos: frozenset[int],
        longest: int | None = None,
    ) -> None:
        """`longest`: positions that the drafter's model takes; None where nothing bounds it."""
        super().__init__(spec, rank, endpoint, notify, name)
        self._stage, self._eos, self._longest = stage, eos, longest
        self._cores: dict[int, DrafterCore] = {}
        self._settings = first_settings(spec.topology.speculation)
        self._hedging = can_hedge(spec.topology.speculation)
        self._turn = 0
        self._warm: set[int] = set()
        self._costs: deque[tuple[int, int]] = deque(maxlen=_TOLD)
        self._refills: deque[tuple[bool, int, int]] = deque(maxlen=_TOLD)
        self.mailbox.listen(self.roles.verdicts, self.roles.first)

    def on_items(self) -> bool:
        """Take verdicts; send the windows that are complete with them."""
        if self.busy:
            return False
        messages = self.mailbox.take()
        for _, _, message in messages:
            self._take(message)
        # A refill that is ready should not wait for the next step.
        sent = self._send()
        if sent:
            self.mailbox.send()
        return bool(messages or sent)

    def ready(self) -> Work | None:
        """One token for each of the most useful branches."""
        steps = [] if self.busy or self.ended else self._steps()
        if not steps:
            return None
        others = _OTHERS if self._hedging and self._settings.hedge else 0
        rows: dict[int, list[tuple[int, int]]] = {}
        for branch, sequence in steps:
            rows.setdefault(branch.session, []).append((len(sequence), -1))
        spans = tuple(Span(self.stage_name, session, "draft", tuple(at[:1])) for session, at in rows.items())
        return self.work(partial(self._stage.step, steps, others), spans, steps)

    def on_done(self, done: Done) -> None:
        """Add the tokens to their branches; send the windows that are complete."""
        steps: list[tuple[Branch, list[int]]] = done.work.context
        self.passed(done, len(steps))
        drafted = done.result()
        fresh = {branch.session for branch, _ in steps} - self._warm
        self._warm |= fresh
        if not fresh:
            # A prompt on its way through the model says nothing of a step.
            self._costs.append((len(steps), round(1e6 * (done.end_s - done.start_s))))
        for step in drafted:
            self._cores[step.branch.session].drafted(step.branch, step.token, step.others)
        self._send()

    @property
    def finished(self) -> bool:
        """Windows are of no use any more once the leader has ended the run."""
        return self.ended and not self.busy

    def _take(self, message: Message) -> None:
        match message:
            case SessionStart():
                self._open(message)
            case Settings():
                if not self._settings.window:
                    # What was committed meanwhile comes in one forward.
                    self._warm.clear()
                self._settings = message
                for core in self._cores.values():
                    self._tune(core)
            case StatsRequest():
                told = StatsReport(message.stamp, tuple(self._costs), tuple(self._refills))
                self._costs.clear()
                self._refills.clear()
                self.mailbox.put(self.roles.windows, self.roles.first, told)
                # At once: how long this takes is measured, too.
                self.mailbox.send()
            case Verdict() if message.session in self._cores:
                core = self._cores[message.session]
                rollback = self._settled(core, message)
                if core.finished is not None:
                    self._close(message.session)
                    return
                self._stage.settle(message.session, core.length, rollback)

    def _open(self, opened: SessionStart) -> None:
        if opened.session in self._cores:
            self._close(opened.session)
        # The token behind the longest sequence can still be drafted.
        limit = opened.limit if self._longest is None else min(opened.limit, self._longest + 1)
        if len(opened.tokens) >= limit:
            return
        s = self._settings
        coupling = self.spec.options(opened.session).sampling.effective_coupling
        self._cores[opened.session] = DrafterCore(
            opened.session, opened.tokens, limit, coupling, window=s.window, depth=s.depth,
            hedge=self._width, policy=self.topology.speculation.policy, eos=self._eos,
            forwarded=None if opened.forwarded < 0 else opened.forwarded, epoch=opened.epoch,
        )  # fmt: skip
        self._tune(self._cores[opened.session])
        self._stage.open(opened.session, opened.seed)

    @property
    def _width(self) -> int:
        return self._settings.hedge if self._hedging else 0

    def _tune(self, core: DrafterCore) -> None:
        s = self._settings
        core.tune(s.window, s.depth, self._width, s.acceptance or None)

    def _settled(self, core: DrafterCore, verdict: Verdict) -> Rollback | None:
        counters = core.counters
        hits, misses = counters.hedge_hits, counters.hedge_misses
        rollback = core.settled(verdict)
        if (counters.hedge_hits, counters.hedge_misses) != (hits, misses):
            self._refills.append((counters.hedge_hits > hits, core.depth, core.hedge))
        return rollback

    def _close(self, session: int) -> None:
        self.counters.add(self._cores.pop(session).counters)
        self._stage.close(session)
        self._warm.discard(session)
        self.done += 1

    def _steps(self) -> list[tuple[Branch, list[int]]]:
        """The main chains of all sessions first, in turns; what room is left goes to hedges."""
        cores = list(self._cores.values())
        self._turn += 1
        start = self._turn % max(1, len(cores))
        cores = cores[start:] + cores[:start]
        found: list[tuple[DrafterCore, Branch]] = []
        for core in cores:
            found += [(core, branch) for branch in core.wants(1) if branch.number == 0]
        for core in cores:
            room = _ROWS - len(found)
            if room <= 0:
                break
            found += [(core, branch) for branch in core.wants(room + 1) if branch.number][:room]
        return [(branch, core.sequence(branch)) for core, branch in found[:_ROWS]]

    def _has_room(self, session: int) -> bool:
        return self.mailbox.has_room(self.roles.windows, self.roles.first, session)

    def _send(self) -> bool:
        found = False
        for core in self._cores.values() if not self.ended else ():
            while self._has_room(core.session) and (window := core.ready()) is not None:
                found = True
                self.mailbox.put(self.roles.windows, self.roles.first, Drafted(window, *self._stage.evidence(window)))
        return found

    def stop(self) -> None:
        """What sessions that are still open counted is part of the report."""
        for core in self._cores.values():
            self.counters.add(core.counters)
