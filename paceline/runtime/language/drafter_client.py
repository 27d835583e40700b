"""The drafter as the leader sees it: whether it is there, what it is told, and what it is told to draft."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from paceline.pipeline.speculation.settings import NO_DRAFTER
from paceline.pipeline.speculation.verify_scheduler import DrafterState, VerifyScheduler
from paceline.pipeline.speculation.window import Verdict, Window
from paceline.runtime.endpoint import Endpoint
from paceline.runtime.language.mailbox import Mailbox
from paceline.runtime.language.messages import SessionStart, Settings, StatsReport, StatsRequest
from paceline.runtime.language.roles import Roles
from paceline.runtime.language.tuning import Tuner
from paceline.runtime.spec import GenerateSpec
from paceline.runtime.timeline import now

__all__ = ["DrafterClient"]

_BACKLOG = 4096
"""Messages that may wait for a drafter which takes none, beyond what credit lets travel; then it is given up."""
_ASK_EVERY_S = 0.1
_ASK_BUSY_S = 1.0
"""Asked in an idle moment the answer's way can be timed; a verifier that is never idle asks all the same."""
_ASK_FIRST_S = 0.02
"""Until the first choice is made."""


class DrafterClient:
    """One drafter for all sessions of a run. Where there is none to begin with, everything here does nothing."""

    def __init__(
        self, spec: GenerateSpec, roles: Roles, endpoint: Endpoint, mailbox: Mailbox, longest: int | None = None
    ) -> None:
        """`longest`: positions that it takes; None where nothing bounds it."""
        self._roles, self._endpoint, self._mailbox = roles, endpoint, mailbox
        self._longest = longest
        self._outrun = False
        speculation = spec.topology.speculation
        self._present = not spec.plain and speculation.drafter != NO_DRAFTER and speculation.window != 0
        self.tuner = Tuner(speculation, len(roles.verifiers), self._present)
        self.lost = False
        """It was there and is not any more; whatever it may still send is of no use"""
        self._why = ""
        self._stamp = 0
        self._asked_s = 0.0
        self._answered = True
        self._disturbed = False
        self._looks = 0

    @property
    def state(self) -> DrafterState:
        """What a scheduler is to know of it."""
        if self.lost:
            return DrafterState.lost
        return DrafterState.off if not self._present or self.tuner.settings.off else DrafterState.on

    def state_at(self, length: int) -> DrafterState:
        """What the scheduler of a session of so many tokens is to know: beyond its limit no window comes."""
        state = self.state
        if state is DrafterState.on and self._longest is not None and length > self._longest:
            self._outrun = True
            return DrafterState.silent
        return state

    def reached(self, scheduler: VerifyScheduler, length: int) -> None:
        """A session has so many tokens now."""
        if self.state_at(length) is DrafterState.silent:
            scheduler.set_drafter(DrafterState.silent)

    def notify(self, scheduler: VerifyScheduler) -> None:
        """Let a scheduler know. One whose patience ran out waits for a window, as long as that can come."""
        state = self.state
        if not (state is DrafterState.on and scheduler.drafter is DrafterState.silent):
            scheduler.set_drafter(state)

    def opened(self, opened: SessionStart) -> None:
        """A session begins."""
        self._put(opened)

    def judged(self, verdict: Verdict) -> None:
        """A verdict has come."""
        self.tuner.committed(verdict)
        self._put(verdict)

    def _put(self, message: SessionStart | Verdict | Settings | StatsRequest) -> None:
        if self._present and not self.lost:
            self._mailbox.put(self._roles.verdicts, self._roles.drafter, message)

    def passed(self, windows: Sequence[Window], seconds: float) -> None:
        """A pass has run here."""
        self._disturbed = True
        self.tuner.passed(windows, seconds)

    def told(self, pace: StatsReport, sessions: int) -> None:
        """It has answered what it was asked."""
        if pace.stamp == self._stamp:
            self._answered = True
            self.tuner.told(pace, None if self._disturbed else now() - self._asked_s, sessions)

    def idle(self) -> None:
        """There is nothing to do here: a good moment to ask."""
        if self._present and not self.lost:
            self._ask(_ASK_EVERY_S)

    def watch(self, sessions: int) -> bool:
        """Look after it; whether schedulers have to be told something."""
        if not self._present or self.lost:
            return False
        drafter = self._roles.drafter
        if drafter in self._endpoint.lost:
            return self._give_up("the drafter is lost; decoding went on without it")
        if self._mailbox.backlog(self._roles.verdicts, drafter) > _BACKLOG:
            return self._give_up("the drafter takes no messages; decoding went on without it")
        self._ask(_ASK_BUSY_S if self.tuner.looks else _ASK_FIRST_S)
        changed = self.tuner.observe(now(), sessions)
        if self.tuner.looks != self._looks:
            self._looks = self.tuner.looks
            s = self.tuner.settings
            self._put(Settings(s.window, s.depth, s.hedge, self.tuner.acceptance()))
        return changed

    def _give_up(self, why: str) -> bool:
        self.lost, self._why = True, why
        self._mailbox.drop(self._roles.drafter)
        self.tuner.stop()
        return True

    def _ask(self, every_s: float) -> None:
        if not self._answered or now() - self._asked_s < every_s:
            return
        self._stamp += 1
        self._answered = self._disturbed = False
        self._asked_s = now()
        self._put(StatsRequest(self._stamp))
        self._mailbox.send()

    def warnings(self, fallbacks: int, reported: Collection[int]) -> list[str]:
        """What the user should know at the end."""
        found = []
        if self._why:
            found.append(self._why)
        if self._outrun:
            found.append(
                f"the drafter takes {self._longest} positions; longer texts were decoded without drafts from there on"
            )
        if fallbacks:
            found.append(f"the drafter was silent for too long {fallbacks} time(s); the verifier decoded plainly then")
        if self._present and not self.lost and self._roles.drafter not in reported:
            found.append("the drafter did not report at the end; its counts are missing")
        return found
