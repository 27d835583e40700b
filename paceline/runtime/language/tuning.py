"""Measures a generation as it runs, and picks what to draft with: the controller's hands and eyes.

At the leader it sees verdicts, times of passes, and what the drafter says of its steps; so what it decides
depends on times and on verified tokens alone. Where the topology fixes window, depth and hedge width, it only measures.

A run that is left to the controller begins plainly, with the drafter already at work: some plain passes say what a
token costs without drafts, some draft steps what a draft costs, and nobody waits for the first window. The same plain
passes are remembered later, when all passes hold whole windows and none says what one token costs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from paceline.pipeline.speculation.controller import OFF, Controller, Settings, predict, ready_share
from paceline.pipeline.speculation.estimate import Estimates, Mean
from paceline.pipeline.speculation.settings import SpeculationSpec
from paceline.pipeline.speculation.window import Policy, Verdict, Window
from paceline.runtime.language.messages import StatsReport, first_settings
from paceline.stages.lm.drafter import can_hedge

__all__ = ["Tuner"]

_INTERVAL, _MOST_SESSIONS = 24, 8
"""Tokens of each session between two looks, for so many sessions at most: more tokens say no more."""
_PLAIN_PASSES = 4
"""Plain passes, and draft steps, before the first choice."""
_MOST_KNOWN = 8
"""Committed tokens of one window in a pass that counts as verifying; a prompt's pass has more, and is no such."""
_WARM = 1024
"""Tokens of a first pass from which it counts."""
_ROUND_TRIPS = 8
"""Round trips of which the least counts: one that met a step under way holds the rest of that step."""


class Tuner:
    """One for all sessions. `runs` is the number of layer runs of the verifier. Times are seconds."""

    def __init__(self, spec: SpeculationSpec, runs: int, drafts: bool) -> None:
        self.estimates = Estimates()
        self._runs = runs
        first = first_settings(spec)
        self.settings = Settings(first.window, first.depth, first.hedge) if drafts else OFF
        self._controller: Controller | None = None
        self._may_stop = spec.window == "auto"
        if drafts and "auto" in (spec.window, spec.depth, spec.hedge) and self.settings.window:
            self._controller = _controller(spec, runs)
            self.settings = self._controller.settings = OFF
        self._drafts = drafts
        self._started = self._controller is None
        self.looks = 0
        """how often the settings were thought over"""
        self._sessions = 1
        self._plain_passes = self._prompts = 0
        self._plain: dict[int, Mean] = {}
        self._trips: deque[float] = deque(maxlen=_ROUND_TRIPS)
        # Since the last look.
        self._since: float | None = None
        self._left_out = 0.0
        self._tokens = self._judged = self._accepted = 0
        # Over all, in seconds: what plain decoding would have taken, and what it took.
        self._worth = self._took = 0.0

    # -- what is measured ----------------------------------------------------------------------------------------------

    def passed(self, windows: Sequence[Window], seconds: float) -> None:
        """The first run of layers has forwarded windows together. The other runs are taken to need as long."""
        if not windows:
            return
        if any(window.known > _MOST_KNOWN for window in windows):
            self._left_out += seconds
            self._prompt(sum(len(window.tokens) for window in windows), seconds * self._runs)
            return
        tokens, whole = sum(len(window.tokens) for window in windows), seconds * self._runs
        if not tokens:
            return
        self.estimates.verify.observe(tokens, whole)
        if all(len(window.tokens) == 1 and not window.drafted for window in windows):
            self._plain_passes += 1
            self._plain.setdefault(tokens, Mean(half_life=20.0)).observe(whole)

    def _prompt(self, tokens: int, seconds: float) -> None:
        """Before there are windows, the prompts say what more tokens cost: the cheapest of them, as others were waiting
        for something. The first pass of a process is slow, which matters less the more it has to do."""
        self._prompts += 1
        hint = self.estimates.verify.hint
        if (self._prompts > 1 or tokens >= _WARM) and (hint is None or seconds * hint[0] < hint[1] * tokens):
            self.estimates.verify.hint = tokens, seconds

    def committed(self, verdict: Verdict) -> None:
        """A verdict has come."""
        self.estimates.acceptance.observe(verdict)
        self._tokens += len(verdict.tokens)
        self._judged += verdict.judged
        self._accepted += verdict.accepted

    def told(self, pace: StatsReport, trip: float | None, sessions: int) -> None:
        """The drafter has answered; `trip` is how long that took, where nothing else happened meanwhile."""
        for branches, micros in pace.steps:
            self.estimates.draft.observe(branches, micros / 1e6)
        if trip is not None:
            self._trips.append(trip)
            self.estimates.round_trip.observe(min(self._trips))
        for ready, depth, hedge in pace.refills:
            hits = self.estimates.hits_alone if depth == 1 else self.estimates.hits
            width = Settings(max(1, self.settings.window), depth, hedge)
            hits.observe(ready, hedge, ready_share(width, self.estimates, max(1, sessions)))

    # -- what is made of it --------------------------------------------------------------------------------------------

    def observe(self, now: float, sessions: int) -> bool:
        """Look at what was measured, if it is time to; whether the settings are other ones now."""
        if self._since is None:
            self._begin(now)
        if not sessions or not self._drafts:
            return False
        self._sessions = sessions
        if not self._started:
            if min(self._plain_passes, round(self.estimates.draft.weight)) < _PLAIN_PASSES:
                return False
            self._started = True
            self._begin(now)
            return self._choose()
        if self._tokens < _INTERVAL * min(sessions, _MOST_SESSIONS):
            return False
        self._account(now)
        return self._choose()

    def end(self, now: float) -> None:
        """Count what has come since the last look."""
        if self._drafts and self._started and self._tokens:
            self._account(now)

    def stop(self) -> None:
        """There is no drafter any more."""
        self._drafts = False
        self.settings = OFF

    def acceptance(self) -> tuple[float, ...]:
        """By index in the window, as far as known."""
        return self.estimates.acceptance.values(max(1, self.settings.window))

    @property
    def predicted(self) -> float | None:
        """Speed over plain decoding that the present settings promise; None where nothing is known of them."""
        if not self._drafts or self._since is None or not self.estimates.verify.known:
            return None
        if self._controller is not None:
            return self._controller.predicted
        return (
            predict(self.settings, self.estimates, self._sessions, self._runs) if self.estimates.draft.known else None
        )

    @property
    def measured(self) -> float | None:
        """Speed over plain decoding that was reached: with the present settings where that is known, else over all."""
        if self._controller is not None and self._controller.measured_speedup.weight:
            return self._controller.measured_speedup.value(1.0)
        return self._worth / self._took if self._took > 0 and self._worth > 0 else None

    def _account(self, now: float) -> None:
        sessions = self._sessions
        self._recall(sessions)
        took = now - (self._since or now) - self._left_out
        worth = self._tokens * self.estimates.verify.at(sessions) / sessions
        share = self._accepted / self._judged if self._judged else None
        if took > 0 and worth > 0:
            self._worth += worth
            self._took += took
            if self._controller is not None:
                self._controller.measured(worth / took, self.estimates, sessions, share)
        self._begin(now)

    def _begin(self, now: float) -> None:
        self._since, self._left_out = now, 0.0
        self._tokens = self._judged = self._accepted = 0

    def _recall(self, sessions: int) -> None:
        """Hold the cost line where plain passes were measured: windows alone leave its lower end open."""
        if self._plain:
            size = min(self._plain, key=lambda tokens: abs(tokens - sessions))
            self.estimates.verify.observe(size, self._plain[size].value(0.0))

    def _choose(self) -> bool:
        self.looks += 1
        if self._controller is None:
            return False
        chosen = self._controller.choose(self.estimates, self._sessions)
        if chosen.off and not self._may_stop:
            # The window is fixed; there is no less to do than that.
            chosen = self._controller.settings = self._least() if self.settings.off else self.settings
        changed = chosen != self.settings
        self.settings = chosen
        return changed

    def _least(self) -> Settings:
        controller = self._controller
        if controller is None:
            return self.settings
        return Settings(min(controller.windows), min(controller.depths), min(controller.hedges))


def _controller(spec: SpeculationSpec, runs: int) -> Controller:
    usual = Controller()
    hedges: Sequence[int] = usual.hedges if spec.hedge == "auto" else (spec.hedge,)
    if not can_hedge(spec) or spec.policy is Policy.redraft:
        hedges = (0,)
    return Controller(
        windows=usual.windows if spec.window == "auto" else (spec.window,),
        depths=usual.depths if spec.depth == "auto" else (spec.depth,),
        hedges=hedges,
        slots=runs,
    )
