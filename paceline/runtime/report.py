"""From what each rank saw to what the run was."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

from paceline.runtime.result import Event, RankReport, RunResult

__all__ = ["merge", "merge_tiers", "peak_rss_bytes", "stage_ms"]


def peak_rss_bytes() -> int:
    """The most resident memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def merge(reports: list[RankReport]) -> RunResult:
    """The whole run from the reports of its ranks."""
    times = sorted((time for report in reports for time in report.times), key=lambda time: (time.session, time.frame))
    first = min((time.emitted_s for time in times), default=0.0)
    last = max((time.shown_s for time in times), default=0.0)
    return RunResult(
        sorted((session for report in reports for session in report.sessions), key=lambda session: session.id),
        last - first,
        times,
        [decision for report in reports for decision in report.decisions],
        sorted(reports, key=lambda report: report.rank),
    )


def stage_ms(events: Sequence[Event]) -> dict[str, float]:
    """Median milliseconds of one pass (all its units) or item, by stage."""
    passes: dict[tuple[str, int, int, int], float] = {}
    for event in events:
        if event.kind not in ("prefill", "drain", "emit", "show", "wait"):
            key = event.stage, event.session, event.frame, event.step
            passes[key] = passes.get(key, 0.0) + event.end_s - event.start_s
    by_stage: dict[str, list[float]] = {}
    for (stage, *_), seconds in passes.items():
        by_stage.setdefault(stage, []).append(1000 * seconds)
    return {stage: median(values) for stage, values in sorted(by_stage.items())}


def merge_tiers(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Statistics of several tier managers as one: counts and bytes are added up, of `max` the largest is taken and of
    `mean` the mean."""
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for part in parts for key in part):
        values = [part[key] for part in parts if key in part]
        if all(isinstance(value, Mapping) for value in values):
            merged[key] = merge_tiers(values)
        else:
            merged[key] = max(values) if key == "max" else mean(values) if key == "mean" else sum(values)
    return merged
