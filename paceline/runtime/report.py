"""From what each rank saw to what the run was."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

from paceline.runtime.result import MemoryUse, RankReport, RunResult

if TYPE_CHECKING:
    from paceline.stages.memory.frame_memory import FrameMemory

__all__ = ["memory_use", "merge", "merge_tiers", "peak_rss_bytes"]


def peak_rss_bytes() -> int:
    """The most resident memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def merge(reports: list[RankReport]) -> RunResult:
    """The whole run from the reports of its ranks."""
    spans = [report.span_s for report in reports if report.span_s != (0.0, 0.0)]
    wall_s = max(end for _, end in spans) - min(start for start, _ in spans) if spans else 0.0
    return RunResult(
        sorted((session for report in reports for session in report.sessions), key=lambda session: session.id),
        wall_s,
        sorted(reports, key=lambda report: report.rank),
    )


def memory_use(memories: Sequence[FrameMemory | MemoryUse]) -> MemoryUse | None:
    """What context memories did together, those of a rank or those of all ranks; None where there are none."""
    if not memories:
        return None
    return MemoryUse(
        max(memory.state_bytes for memory in memories),
        sum(memory.reads for memory in memories),
        sum(memory.writes for memory in memories),
    )


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
