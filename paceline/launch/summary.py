"""What a run is summed up as: the JSON object of `paceline run --json`, which `summary.json` holds too.

Definitions (times in milliseconds):

- `frames_per_second`: frames of all sessions over the time from the first action to the last frame.
- `period_ms`: time between two frames of a session in the steady state, the median slope over the second half of the
  session (`steady_period`, as the plan predicts it); the median over the sessions.
- `latency_ms`: from a frame's action to the frame, over all frames of all sessions.
- `lateness_ms`: how long after its due time a frame came, 0 if in time; null without a deadline.
- `tiers`: by group with memory tiers: `hits` by tier, which sum to `lookups` (of blocks, once for each time that
  attention reads one), bytes moved and staged, errors, stalls by cause, blocks and bytes by tier at the end.
- `memory`: of the context memories of all sessions: `state_bytes` of one session, and how often they were read and
  written; null without `context.memory`.
- `ended`: why the run ended early, in the summary of what it left; null where it came to its end.
- `bubble`: the share of the run in which a rank computed nothing, by rank.
- `sessions`: of each what was shown of it; `failed` says where and why it failed, and is null where it came through.
  `warnings` names those that failed. Rates, latencies and lateness are of frames that were shown.
- `stage_ms`: median over the newest 4,096 passes of a stage. Rates, latencies and lateness are of the newest 200,000
  frames of each session. Nothing is approximated below these numbers.
- Percentiles are interpolated linearly between measured values (`steady.percentile`).
"""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from paceline.pipeline.steady import percentile, steady_period
from paceline.runtime.result import FrameTime, RankReport, Result, RunResult, memory_use, merge_tiers
from paceline.runtime.spec import GenerateSpec, RunSpec
from paceline.versions import JSON_OUTPUT

__all__ = ["Machine", "Summary", "check_version", "describe_machine", "rounded", "summarize", "summary_of", "versioned"]


Summary = dict[str, Any]
"""Plain data that JSON can hold; no NaN, null where there is nothing to say."""


def summary_of(
    spec: RunSpec | GenerateSpec, result: Result[Any], rank_fields: Callable[[RankReport], Summary]
) -> Summary:
    """What the summaries of all workloads have; `rank_fields` gives what a workload adds of each rank."""
    return versioned(
        {
            "topology": spec.topology.name,
            "seed": spec.seed,
            "serial": spec.serial,
            "sessions": [rounded(msgspec.to_builtins(session)) for session in result.sessions],
            "wall_s": _rounded(result.wall_s),
            "tiers": _tiers_by_group(result.ranks),
            "warnings": [],
            "ranks": [_rank(report) | rank_fields(report) for report in result.ranks],
            "machine": {**describe_machine(), "threads": sum(report.threads for report in result.ranks)},
        }
    )


def summarize(spec: RunSpec, result: RunResult) -> Summary:
    """Sum up a run that makes frames."""
    frames = sum(session.frames for session in result.sessions)
    hosts = _hosts(result.ranks)

    def fields_of(report: RankReport) -> Summary:
        stage_ms = {stage: _rounded(value) for stage, value in report.stage_ms.items()}
        return {"host": hosts[report.host], "stages": report.stages, "stage_ms": stage_ms}

    return summary_of(spec, result, fields_of) | {
        "frames_per_second": _rounded(frames / result.wall_s) if result.wall_s > 0 else None,
        "period_ms": _rounded(_period_ms(result.times)),
        "latency_ms": _percentiles([(t.shown_s - t.emitted_s) * 1e3 for t in result.times], (0.5, 0.99)),
        "schedule": spec.topology.schedule.value,
        "context": spec.topology.context.mode.value,
        "frames": spec.frames,
        "ended": result.ended,
        "deadline_ms": spec.topology.deadline_ms,
        "on_late": spec.topology.on_late.value,
        "lateness_ms": _lateness(result.times),
        "decisions": [msgspec.to_builtins(decision) for decision in result.decisions],
        "stage_ms": _stage_ms(result.ranks),
        "bubble": {str(rank.rank): _rounded(_bubble(rank)) for rank in result.ranks},
        "memory": msgspec.to_builtins(memory_use([rank.memory for rank in result.ranks if rank.memory is not None])),
        "kv_sha256": {key: value for rank in result.ranks for key, value in sorted(rank.kv_sha256.items())},
        "warnings": [
            f"session {session.id} failed at frame {session.frames}: {session.failed}"
            for session in result.sessions
            if session.failed is not None
        ],
        "edges": [msgspec.to_builtins(edge) for rank in result.ranks for edge in rank.edges],
    }


def _period_ms(times: Sequence[FrameTime]) -> float:
    shown: dict[int, list[float]] = {}
    for time in times:
        shown.setdefault(time.session, []).append(time.shown_s)
    # A session that failed at once has none.
    periods = [steady_period(sorted(session)) for session in shown.values() if len(session) > 1]
    return statistics.median(periods) * 1e3 if periods else math.nan


def _lateness(times: Sequence[FrameTime]) -> dict[str, float | None] | None:
    late = [max(time.shown_s - time.due_s, 0.0) * 1e3 for time in times if not math.isnan(time.due_s)]
    if not late:
        return None
    return {**_percentiles(late, (0.5, 0.99)), "max": _rounded(max(late))}


def _percentiles(values: Sequence[float], shares: Sequence[float]) -> dict[str, float | None]:
    return {f"p{round(share * 100)}": _rounded(percentile(values, share)) for share in shares}


def _stage_ms(ranks: Sequence[RankReport]) -> dict[str, float]:
    """By stage; where several ranks compute a stage, the median over them."""
    by_stage: dict[str, list[float]] = {}
    for rank in ranks:
        for stage, value in rank.stage_ms.items():
            by_stage.setdefault(stage, []).append(value)
    return {stage: round(statistics.median(values), 4) for stage, values in by_stage.items()}


def _tiers_by_group(ranks: Sequence[RankReport]) -> dict[str, Any]:
    """By group, all its ranks together; empty where no group has memory tiers."""
    by_group: dict[str, list[dict[str, Any]]] = {}
    for rank in ranks:
        if rank.tiers is not None:
            by_group.setdefault(rank.group, []).append(rank.tiers)
    return {group: merge_tiers(parts) for group, parts in by_group.items()}


def _bubble(rank: RankReport) -> float | None:
    return max(1 - rank.busy_s / rank.wall_s, 0.0) if rank.wall_s > 0 else None


def _hosts(ranks: Sequence[RankReport]) -> dict[str, int]:
    """Hosts by number, since a summary is passed around and a name says who owns the machine."""
    return {host: index for index, host in enumerate(dict.fromkeys(rank.host for rank in ranks))}


def _rank(report: RankReport) -> Summary:
    return {
        "rank": report.rank,
        "group": report.group,
        "device": report.device,
        "threads": report.threads,
        "busy_s": _rounded(report.busy_s),
        "wait_s": _rounded(report.wait_s),
        "wall_s": _rounded(report.wall_s),
        "peak_rss_bytes": report.peak_rss_bytes,
    }


def rounded(record: Mapping[str, Any]) -> Summary:
    """The record with its numbers to four decimals."""
    return {key: _rounded(value) if isinstance(value, float) else value for key, value in record.items()}


def _rounded(value: float | None) -> float | None:
    """To four decimals, and null for what is no number."""
    return None if value is None or not math.isfinite(value) else round(value, 4)


Machine = dict[str, str | int | float]


def describe_machine() -> Machine:
    """Processor, cores that this process may use, memory in bytes, and versions. Imports no torch."""
    return {
        "cpu": _cpu(),
        "cores": _cores(),
        "ram_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": _version("torch"),
        "paceline": _version("paceline"),
    }


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def versioned(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The object with its version, as the first field."""
    return {"version": JSON_OUTPUT, **fields}


def check_version(found: Mapping[str, Any]) -> None:
    """Check an object that a command wrote; one without a version is of a Paceline before versions, which wrote what
    version 1 says. Raises `ValueError` for any other."""
    version = found.get("version", JSON_OUTPUT)
    if version != JSON_OUTPUT:
        raise ValueError(
            f"it is of version {version!r}, and this Paceline reads {JSON_OUTPUT}; use the one that wrote it"
        )
