"""When a frame is due, and what is done about a late one. Pure: the caller brings the clock.

Actions come at a fixed cadence. The display starts with the first frame and then wants one every period, so frame i is
due at `start + lead + i * period`, where the lead is the time the first frame took, at least one period.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from paceline.pipeline.topology import LatePolicy

__all__ = ["Decisions", "Pacer", "Shown"]


@dataclass(frozen=True, slots=True)
class Shown:
    """What became of a frame: when it was due (seconds), how late it came, and how often the one before it was shown
    again meanwhile."""

    due_s: float
    late_s: float
    repeats: int


@dataclass(frozen=True, slots=True)
class Decisions:
    """What was decided about late frames in an earlier run of a session, by frame."""

    fewer_steps: Mapping[int, int] = field(default_factory=dict)
    """The first step of frames that took fewer"""
    repeat: Mapping[int, int] = field(default_factory=dict)
    """How often the frame before was shown again"""


@dataclass(slots=True)
class Pacer:
    """Cadence of one session. Times are seconds on the caller's clock; `index` counts generated frames."""

    period_s: float | None
    policy: LatePolicy
    steps: int
    replayed: Decisions | None = None
    """Decisions of an earlier run, taken again in place of new ones"""
    start_s: float | None = None
    _first: tuple[int, int] = (-1, 0)
    """The last frame that began at a later step, and that step"""
    _lead_s: float = 0.0
    _shift: int = 0
    _late_s: float = 0.0

    def emit_at(self, index: int) -> float | None:
        """The earliest time at which the action of a frame is taken, or None for at once."""
        if self.period_s is None or self.start_s is None:
            return None
        return self.start_s + index * self.period_s

    def emit(self, index: int, now_s: float) -> int:
        """Take the action of a frame: returns the first step that it computes (0 unless `fewer_steps` cuts some).

        Steps are cut in proportion to how far the pipeline is behind: half of them for a lag of one period.
        """
        if self.start_s is None:
            self.start_s = now_s
        if self.replayed is not None:
            first = self.replayed.fewer_steps.get(index, 0)
        elif self.period_s is None or self.policy is not LatePolicy.fewer_steps:
            return 0
        else:
            lag = max(now_s - (self.start_s + index * self.period_s), self._late_s)
            pressure = lag / self.period_s
            first = min(self.steps - 1, math.ceil(pressure * self.steps / 2)) if pressure > 0.25 else 0
            # Back to all steps one at a time: a frame reads what the one before has computed (`Context.earliest_step`).
            before, began = self._first
            first = max(first, began - 1 if before == index - 1 else 0)
        if first:
            self._first = index, first
        return first

    def show(self, index: int, now_s: float) -> Shown:
        """A finished frame reached the sink."""
        repeats = 0 if self.replayed is None else self.replayed.repeat.get(index, 0)
        if self.period_s is None or self.start_s is None:
            return Shown(math.nan, 0.0, repeats)
        if index == 0:
            self._lead_s = max(self.period_s, now_s - self.start_s)
        due = self.start_s + self._lead_s + (index + self._shift) * self.period_s
        self._late_s = max(0.0, now_s - due)
        if self.replayed is None and self._late_s > 0 and self.policy is LatePolicy.repeat:
            # The display has shown the frame before once more at every tick missed; all that follow slip by as many.
            repeats = math.ceil(self._late_s / self.period_s)
        self._shift += repeats
        return Shown(due, self._late_s, repeats)
