"""What is measured while it runs: acceptance by index in the window, costs, hedge hits. All of it forgets.

Acceptance is estimated from judged tokens alone: what lies behind a rejection was not rejected but never looked at, and
counts for nothing (a censored observation). Costs are straight lines in what they depend on, branches of a draft step
or tokens of a pass, fitted by least squares with weights that halve every so many observations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from paceline.pipeline.speculation.window import Verdict

__all__ = ["Acceptance", "CostLine", "Estimates", "HedgeHits", "Mean"]


@dataclass(slots=True)
class Mean:
    """An average that forgets: an observation counts half after `half_life` more of them."""

    half_life: float = 50.0
    weight: float = 0.0
    total: float = 0.0

    def observe(self, value: float, count: float = 1.0) -> None:
        """Take an observation, worth `count` single ones."""
        kept = 0.5 ** (count / self.half_life)
        self.weight = self.weight * kept + count
        self.total = self.total * kept + value * count

    def value(self, default: float) -> float:
        """The average, or `default` where nothing was observed."""
        return self.total / self.weight if self.weight else default


@dataclass(slots=True)
class CostLine:
    """seconds = fixed + each * x, by weighted least squares; neither part is ever negative.

    A `hint` is a measurement at a far larger x: it says how steep the line is above what was measured, as long as
    nothing nearer does, and is not part of the fit.
    """

    half_life: float = 100.0
    weight: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0
    hint: tuple[float, float] | None = None
    """x, seconds"""

    def observe(self, x: float, seconds: float) -> None:
        """Take one measurement."""
        kept = 0.5 ** (1.0 / self.half_life)
        self.weight = self.weight * kept + 1.0
        self.x = self.x * kept + x
        self.y = self.y * kept + seconds
        self.xx = self.xx * kept + x * x
        self.xy = self.xy * kept + x * seconds

    @property
    def known(self) -> bool:
        """Whether anything was measured."""
        return self.weight > 0

    def line(self) -> tuple[float, float]:
        """(fixed, each) in seconds. Where all measurements have the same x, all of it is taken to be fixed."""
        if not self.weight:
            return 0.0, 0.0
        mean_x, mean_y = self.x / self.weight, self.y / self.weight
        spread = self._spread
        if spread <= 0:
            return mean_y, 0.0
        each = max(0.0, (self.xy / self.weight - mean_x * mean_y) / spread)
        fixed = mean_y - each * mean_x
        return (fixed, each) if fixed >= 0 else (0.0, mean_y / mean_x)

    def at(self, x: float) -> float:
        """Seconds at x."""
        fixed, each = self.line()
        mean_x = self.x / self.weight if self.weight else 0.0
        if self.hint is not None and self.weight and self._spread <= 0 and self.hint[0] >= 2 * mean_x:
            steep = max(0.0, self.hint[1] - fixed) / (self.hint[0] - mean_x)
            return fixed + steep * max(0.0, x - mean_x)
        return fixed + each * x

    @property
    def _spread(self) -> float:
        """Of x, squared; 0 where all measurements have the same."""
        mean_x = self.x / self.weight
        spread = self.xx / self.weight - mean_x * mean_x
        return spread if spread > 1e-9 * max(1.0, mean_x * mean_x) else 0.0


@dataclass(slots=True)
class Acceptance:
    """The chance that a drafted token is accepted, by index in the window, given that all before it are."""

    half_life: float = 200.0
    prior: float = 0.7
    """the chance before anything is known, worth `prior_weight` tokens"""
    prior_weight: float = 4.0
    judged: list[float] = field(default_factory=list)
    accepted: list[float] = field(default_factory=list)

    def observe(self, verdict: Verdict) -> None:
        """Take a verdict. The half-life counts judged tokens."""
        if not verdict.judged:
            return
        kept = 0.5 ** (verdict.judged / self.half_life)
        end = verdict.offset + verdict.judged
        for held in (self.judged, self.accepted):
            held.extend([0.0] * (end - len(held)))
            held[:] = [value * kept for value in held]
        for index in range(verdict.offset, end):
            self.judged[index] += 1.0
            self.accepted[index] += index < verdict.offset + verdict.accepted

    @property
    def mean(self) -> float:
        """Over all indices."""
        weight = self.prior_weight
        return (sum(self.accepted) + self.prior * weight) / (sum(self.judged) + weight)

    def at(self, index: int) -> float:
        """At one index. Few observations of an index lean on the mean over all."""
        if index >= len(self.judged):
            return self.mean
        lean = 20.0
        return (self.accepted[index] + self.mean * lean) / (self.judged[index] + lean)

    def values(self, count: int) -> tuple[float, ...]:
        """For the first `count` indices."""
        mean = self.mean
        known = [self.at(index) for index in range(min(count, len(self.judged)))]
        return (*known, *[mean] * (count - len(known)))


@dataclass(slots=True)
class HedgeHits:
    """How often a rollback finds its refill ready, for any width: 1 - chance(F) = (1 + F)**-power, after the power law
    that misses of the F likeliest tokens follow (Kumar et al. 2026)."""

    mean: Mean = field(default_factory=lambda: Mean(half_life=60.0))
    prior: float = 0.5
    _widths: Mean = field(default_factory=lambda: Mean(half_life=60.0))

    def observe(self, hit: bool, width: int, ready: float = 1.0) -> None:
        """Take one rollback at a hedge width; `ready` is the share of hedges that there was time to draft."""
        if width < 1 or ready <= 0:
            return
        # One outcome says little about the power; the expected one at this width is what is averaged.
        self.mean.observe((1.0 if hit else 0.0) / ready, 1.0)
        self._widths.observe(float(width))

    @property
    def power(self) -> float:
        """The exponent."""
        if self.mean.weight < 5:
            return self.prior
        chance = min(0.98, max(0.02, self.mean.value(0.5)))
        return -math.log(1.0 - chance) / math.log(1.0 + max(1.0, self._widths.value(1.0)))

    def chance(self, width: int) -> float:
        """The chance of a hit at a width."""
        return 1.0 - (1.0 + width) ** -self.power if width > 0 else 0.0


@dataclass(slots=True)
class Estimates:
    """Everything that the controller looks at. Times in seconds."""

    acceptance: Acceptance = field(default_factory=Acceptance)
    draft: CostLine = field(default_factory=CostLine)
    """a draft step, by branches in it"""
    verify: CostLine = field(default_factory=CostLine)
    """a pass of the target through all ranks, by tokens in it"""
    round_trip: Mean = field(default_factory=Mean)
    """a window's way to the verifier and its verdict's way back"""
    hits: HedgeHits = field(default_factory=HedgeHits)
    """with windows in flight: rollbacks after a rejection"""
    hits_alone: HedgeHits = field(default_factory=lambda: HedgeHits(prior=0.7))
    """with one window in flight: every window begins anew, and the token behind an accepted one is easy to foresee"""
