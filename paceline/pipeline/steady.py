"""Steady state from completion times: period, rate, percentiles. For simulated and for measured runs alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

__all__ = ["percentile", "steady_period", "steady_window"]


def steady_period(times: Sequence[float]) -> float:
    """Seconds between completions in the steady state: the median slope over the second half.

    Each slope spans a quarter of the run, so a pattern that repeats every few completions (two quick, one late) counts
    as what it is on average. NaN for fewer than two times.
    """
    if len(times) < 2:
        return math.nan
    span = max(len(times) // 4, 1)
    first = min(len(times) // 2, len(times) - 1 - span)
    return median((times[i + span] - times[i]) / span for i in range(first, len(times) - span))


def steady_window(sessions: Sequence[Sequence[float]]) -> tuple[float, float]:
    """From when to when all sessions were in the steady state: after the half and before seven eighths of their
    completions, so that neither filling nor draining counts. (0, 0) where there is no such time."""
    started = [times[len(times) // 2] for times in sessions if times]
    stopped = [times[(len(times) - 1) * 7 // 8] for times in sessions if times]
    if not started or max(started) >= min(stopped):
        return 0.0, 0.0
    return max(started), min(stopped)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0..1) of `values` lie, interpolated linearly. NaN for no values."""
    if not values:
        return math.nan
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
