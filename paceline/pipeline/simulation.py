"""What a simulation saw: who worked on what and when, when frames came and went, what lay on the edges.

Times are seconds of virtual time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import NamedTuple

from paceline.pipeline.program import Row, UnitKind
from paceline.pipeline.steady import percentile, steady_period, steady_window

__all__ = ["Simulation", "Span", "Traffic"]


class Span(NamedTuple):
    """One unit, from its start to its end on its rank. A unit that is no pass has one row at step -1."""

    start: float
    stop: float
    stage: str
    session: int
    kind: UnitKind
    slot: int
    rows: tuple[Row, ...]
    layers: tuple[int, int]


@dataclass(slots=True)
class Traffic:
    """What went over an edge, all sessions together; the peaks are the most of a single session in flight at once."""

    items: int = 0
    bytes: int = 0
    peak_items: int = 0
    peak_bytes: int = 0


@dataclass
class Simulation:
    """The record of a simulation. `emitted` and `shown` hold, for each session, the time by frame at which the source
    began to send it and at which the sink had it."""

    ranks: list[list[Span]]
    emitted: list[dict[int, float]]
    shown: list[dict[int, float]]
    traffic: list[Traffic]
    end_s: float = 0.0

    @cached_property
    def period_s(self) -> float:
        """Steady time between frames of one session; the median over the sessions."""
        return median(steady_period(sorted(shown.values())) for shown in self.shown)

    @cached_property
    def frames_per_second(self) -> float:
        """Steady rate of all sessions together; NaN where nothing took any time."""
        period = steady_period(sorted(time for shown in self.shown for time in shown.values()))
        return 1.0 / period if period > 0 else math.nan

    @cached_property
    def latencies_s(self) -> list[float]:
        """Time from emission to sink of every frame."""
        return [
            time - emitted[frame]
            for emitted, shown in zip(self.emitted, self.shown, strict=True)
            for frame, time in shown.items()
        ]

    def latency_s(self, share: float) -> float:
        """A percentile of the latencies: 0.5 for the median, 0.99 for p99."""
        return percentile(self.latencies_s, share)

    @cached_property
    def window_s(self) -> tuple[float, float]:
        """The part of the simulation that counts as steady."""
        return steady_window([sorted(shown.values()) for shown in self.shown])

    def busy_s(self, rank: int, start: float = 0.0, stop: float = float("inf")) -> float:
        """Time between `start` and `stop` in which a rank computed."""
        return sum(max(min(span.stop, stop) - max(span.start, start), 0.0) for span in self.ranks[rank])

    def bubble(self, rank: int) -> float:
        """Share of the steady time that a rank was idle, 0..1; of all the time where nothing was steady."""
        start, stop = self.window_s
        if stop <= start:
            start, stop = 0.0, self.end_s
        return 1.0 - self.busy_s(rank, start, stop) / (stop - start) if stop > start else 0.0
