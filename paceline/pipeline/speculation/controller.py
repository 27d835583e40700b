"""Picks window, depth and hedge width, or off, from what was measured; says what it expects of them.

Every setting has a predicted speed, from `formula.py` fed with estimates. What was measured under a setting corrects
what is predicted for it, and less so for settings near it; what was measured little gets a small credit, so that the
good ones are tried (as in UCB1; Auer, Cesa-Bianchi and Fischer 2002). The choice ends up resting on measurements where
it matters, among the best. A setting is kept unless another promises more by `hysteresis`. Speculation is off where no
setting beats plain decoding: large batches, where a pass costs what its tokens cost.

Luck is taken out of a measurement before it corrects anything: what is compared is the prediction for the acceptance
that the measured tokens happened to have.

A decision depends on times and on verified tokens alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from paceline.pipeline.speculation.estimate import Estimates, Mean
from paceline.pipeline.speculation.formula import Costs, pipelined, sequential
from paceline.pipeline.speculation.settings import AUTO_DEPTHS, AUTO_WINDOWS

__all__ = ["OFF", "Controller", "Settings", "predict", "ready_share"]


@dataclass(frozen=True, slots=True, order=True)
class Settings:
    """A window of 0 is off."""

    window: int
    depth: int
    hedge: int

    @property
    def off(self) -> bool:
        """Whether nothing is drafted."""
        return self.window == 0


OFF = Settings(0, 1, 0)


def ready_share(settings: Settings, estimates: Estimates, sessions: int) -> float:
    """The share of its hedges that a drafter has time to draft between a window's start and its verdict."""
    if settings.hedge < 1:
        return 0.0
    step = estimates.draft.at(sessions)
    verify = estimates.verify.at(sessions * (settings.window + 1))
    wait = verify + estimates.round_trip.value(0.0)
    # Meanwhile the main chain goes on, as far as the depth allows.
    ahead = min(settings.depth - 1, math.ceil(wait / max(1e-12, settings.window * step)))
    free = max(0.0, wait - ahead * settings.window * step)
    needed = settings.window * estimates.draft.at(sessions * settings.hedge)
    return min(1.0, free / needed) if needed > 0 else 1.0


def predict(
    settings: Settings,
    estimates: Estimates,
    sessions: int = 1,
    slots: int = 1,
    acceptance: Sequence[float] | None = None,
) -> float:
    """Speed over plain decoding of as many sessions. `slots` is the number of layer runs of the verifier; all sessions
    are taken to move in step, which is the worst that batching does to a pass. `acceptance` by index replaces what was
    estimated."""
    if settings.off:
        return 1.0
    plain = estimates.verify.at(sessions)
    if plain <= 0:
        return 1.0
    costs = Costs(
        draft=estimates.draft.at(sessions) / plain,
        # Alone, every window brings the committed token before it; in a line only those after a rejection do.
        verify=estimates.verify.at(sessions * (settings.window + (1.0 if settings.depth == 1 else 0.5))) / plain,
        round_trip=estimates.round_trip.value(0.0) / plain,
        slots=slots,
    )
    acceptance = acceptance or estimates.acceptance.values(settings.window)
    hits = estimates.hits_alone if settings.depth == 1 else estimates.hits
    hit = hits.chance(settings.hedge) * ready_share(settings, estimates, sessions)
    if settings.depth == 1:
        # In turns; a refill that is ready saves its drafting.
        hedged = Costs((1.0 - hit) * costs.draft, costs.verify, costs.round_trip)
        return sequential(acceptance, settings.window, hedged)
    return pipelined(acceptance, settings.window, costs, hit, settings.depth)


@dataclass(slots=True)
class Controller:
    """Keeps one choice for all sessions of a drafter. `slots` is the number of layer runs of the verifier.

    `choose` is called every now and then (some tens of committed tokens apart), after `measured` said what the present
    settings came to since the last call. `retry` is the number of calls after which speculation is tried again where it
    is off, since nothing is learnt about acceptance meanwhile.
    """

    windows: Sequence[int] = AUTO_WINDOWS
    depths: Sequence[int] = AUTO_DEPTHS
    hedges: Sequence[int] = (0, 2, 4, 8)
    slots: int = 1
    hysteresis: float = 0.03
    credit: float = 0.06
    dwell: int = 4
    """calls that a setting is kept at least"""
    retry: int = 50
    settings: Settings = Settings(4, 2, 2)
    best: Settings = Settings(4, 2, 2)
    """of the settings that were tried, and off, the one that promises most: what is to be kept when trying ends"""
    predicted: float = 1.0
    """speed over plain that the present settings promise, corrected by what was measured"""
    measured_speedup: Mean = field(default_factory=lambda: Mean(half_life=20.0))
    _corrections: dict[Settings, Mean] = field(default_factory=dict)
    _calls: int = 0

    def measured(self, speedup: float, estimates: Estimates, sessions: int = 1, share: float | None = None) -> None:
        """Take the speed over plain decoding that the present settings had since the last choice, and the share of
        judged tokens that was accepted in that time (None where nothing was judged)."""
        self.measured_speedup.observe(speedup)
        # What was in flight when the settings changed is not their doing.
        if self.settings.off or share is None or self._calls == 0:
            return
        scale = share / max(1e-6, estimates.acceptance.mean)
        realised = [min(0.995, a * scale) for a in estimates.acceptance.values(self.settings.window)]
        expected = predict(self.settings, estimates, sessions, self.slots, realised)
        ratio = min(4.0, max(0.25, speedup / expected))
        self._corrections.setdefault(self.settings, Mean(half_life=20.0)).observe(math.log(ratio))

    def choose(self, estimates: Estimates, sessions: int = 1) -> Settings:
        """The settings from now on."""
        if not estimates.verify.known or (not estimates.draft.known and not self.settings.off):
            return self.settings
        self._calls += 1
        values = {s: predict(s, estimates, sessions, self.slots) for s in self.candidates()}
        best, best_value, promise = OFF, 1.0, 1.0
        present = hopes = most = 1.0
        self.best = OFF
        for settings, raw in values.items():
            correction, tried = self._correction(settings)
            value = raw * correction
            hoped = value * (1.0 + self.credit / math.sqrt(1.0 + tried))
            if settings == self.settings:
                present, hopes = value, hoped
            if value > most and (tried >= 1.0 or settings == self.settings):
                self.best, most = settings, value
            if hoped > best_value:
                best, best_value, promise = settings, hoped, value
        keep = best_value < hopes * (1.0 + self.hysteresis)
        if self.settings.off:
            if keep and self._calls >= self.retry:
                # A look at the least that there is to lose.
                self._corrections = {}
                return self._set(Settings(min(self.windows), min(self.depths), 0), 1.0)
        elif self._calls < self.dwell and present >= 1.0:
            # What loses is not waited for.
            keep = True
        return self._set(self.settings, present) if keep else self._set(best, promise)

    def candidates(self) -> list[Settings]:
        """All settings there are to choose from and the present ones, off left out."""
        grid = [Settings(w, d, h) for w in self.windows for d in self.depths for h in self.hedges]
        return grid if self.settings.off or self.settings in grid else [self.settings, *grid]

    def _set(self, settings: Settings, promise: float) -> Settings:
        if settings != self.settings:
            self.measured_speedup = Mean(half_life=20.0)
            self._calls = 0
        self.settings, self.predicted = settings, promise
        return settings

    def _correction(self, settings: Settings) -> tuple[float, float]:
        """What measurements say about a prediction, weighed by how near they are, and how often it was tried itself."""
        weight = total = tried = 0.0
        for other, mean in self._corrections.items():
            distance = (
                abs(math.log2((settings.window + 1) / (other.window + 1)))
                + 0.7 * abs(math.log2(settings.depth / other.depth))
                + 0.5 * abs(math.log2((settings.hedge + 1) / (other.hedge + 1)))
            )
            near = mean.weight * math.exp(-2.5 * distance)
            weight += near
            total += near * mean.value(0.0)
            # A neighbour says what a setting is like, but does not replace having tried it.
            tried += mean.weight * math.exp(-6.0 * distance)
        # Half an observation that all is as predicted.
        return math.exp(total / (weight + 0.5)), tried
