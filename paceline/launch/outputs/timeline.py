"""Events as passes, with one origin of time: which rank worked on which frame, and how steadily."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from msgspec.structs import replace

from paceline.runtime.result import Event, FrameTime, Result

__all__ = ["WAIT", "Pass", "Steady", "aligned", "passes", "runs", "steady", "union_s"]


WAIT = "wait"
ResultT = TypeVar("ResultT", bound=Result[Any])
_OVERHEAD_S = 50e-6
"""Gaps between two units up to this are the loop's own cost and no wait."""


def aligned(result: ResultT, prompt: int) -> ResultT:
    """The result with times from the earliest instant on, and events numbered as `times` and the journal number frames:
    0 is the first generated one, prompt frames are negative. `prompt` is how many positions precede frame 0.

    Events of a rank come in order of time. Where it noted no waits, its gaps between units become waits.
    """
    starts = [event.start_s for report in result.ranks for event in report.events]
    zero = min(starts + [time.emitted_s for time in result.times], default=0.0)
    ranks = []
    for report in result.ranks:
        events = [
            Event(
                event.rank, event.stage, event.session, event.kind, event.frame - prompt, event.step, event.layer,
                event.start_s - zero, max(event.start_s, event.end_s) - zero,
            )
            for event in report.events
        ]  # fmt: skip
        events.sort(key=lambda event: (event.start_s, event.end_s))
        if not any(event.kind == WAIT for event in events):
            events += _gaps(events)
        ranks.append(replace(report, events=events))
    times = [
        replace(time, emitted_s=time.emitted_s - zero, shown_s=time.shown_s - zero, due_s=time.due_s - zero)
        for time in result.times
    ]
    return replace(result, ranks=ranks, times=times)


def _gaps(events: Sequence[Event]) -> list[Event]:
    gaps: list[Event] = []
    reach = float("inf")
    for event in events:
        if event.start_s - reach > _OVERHEAD_S:
            gaps.append(Event(event.rank, "", -1, WAIT, -1, -1, 0, reach, event.start_s))
        reach = event.end_s if reach == float("inf") else max(reach, event.end_s)
    return gaps


_GENERATING = frozenset({"layers", "sleep"})
_PERIODS = 4
"""A steady region that is shorter than this says little."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Units of one stage and session that belong to one step of one frame, in the order they ran."""

    rank: int
    stage: str
    session: int
    kind: str
    frame: int
    step: int
    units: tuple[Event, ...]

    @property
    def start_s(self) -> float:
        """When the first unit began."""
        return self.units[0].start_s

    @property
    def end_s(self) -> float:
        """When the last unit ended."""
        return max(unit.end_s for unit in self.units)


def passes(events: Iterable[Event]) -> list[Pass]:
    """Join consecutive units of the same step of the same frame. Waits are left out. In order of time."""
    streams: dict[tuple[int, str, int], list[Event]] = {}
    for event in events:
        if event.kind != WAIT:
            streams.setdefault((event.rank, event.stage, event.session), []).append(event)
    found = []
    for stream in streams.values():
        stream.sort(key=lambda event: (event.start_s, event.end_s, event.layer))
        group: list[Event] = []
        for event in stream:
            if group and _what(group[0]) != _what(event):
                found.append(_pass(group))
                group = []
            group.append(event)
        found.append(_pass(group))
    return sorted(found, key=lambda item: (item.start_s, item.rank, item.stage, item.session))


def runs(item: Pass, gap_s: float) -> list[tuple[float, float]]:
    """The stretches `(start_s, end_s)` of a pass in which it computed, gaps up to `gap_s` closed."""
    stretches: list[tuple[float, float]] = []
    for unit in item.units:
        if stretches and unit.start_s - stretches[-1][1] <= gap_s:
            stretches[-1] = (stretches[-1][0], max(stretches[-1][1], unit.end_s))
        else:
            stretches.append((unit.start_s, max(unit.start_s, unit.end_s)))
    return stretches


def _what(event: Event) -> tuple[str, int, int]:
    return event.kind, event.frame, event.step


def _pass(units: Sequence[Event]) -> Pass:
    first = units[0]
    return Pass(first.rank, first.stage, first.session, first.kind, first.frame, first.step, tuple(units))


@dataclass(frozen=True, slots=True)
class Steady:
    """The middle of a run, after the pipeline filled and before it drains."""

    start_s: float
    end_s: float
    period_s: float
    """Mean time between two frames of the same session."""
    busy: dict[int, float]
    """Share of the region in which each rank computed."""
    working: tuple[int, ...]
    """Ranks that denoise or sleep; the others only feed, decode or show."""

    @property
    def bubble(self) -> float:
        """Idle share of the ranks that denoise or sleep."""
        if not self.working:
            return 0.0
        return 1.0 - sum(self.busy[rank] for rank in self.working) / len(self.working)


def steady(result: Result[Any]) -> Steady | None:
    """The steady region: where every rank is at work and every session is between the first and the third quarter of
    its frames, as far as there is such a time. None below two frames.

    A deep pipeline may drain from its first rank before half of the frames are shown; then what counts is that all
    ranks work. Sessions that ran one after another share no time; then it is the region of the first one.
    """
    shown = [shows for shows in _shown_by_session(result.times) if len(shows) > 1]
    quarters = [(shows[len(shows) // 4], shows[(3 * len(shows)) // 4]) for shows in shown]
    if not quarters:
        return None
    counts = [(3 * len(shows)) // 4 - len(shows) // 4 for shows in shown]
    period = sum((hi - lo) / n for (lo, hi), n in zip(quarters, counts, strict=True)) / len(quarters)
    full, working = _full(result)
    shared = max(lo for lo, _ in quarters), min(hi for _, hi in quarters)
    both = max(shared[0], full[0]), min(shared[1], full[1])
    for start, end in (both, full, shared) if shared[0] < shared[1] else (quarters[0],):
        if end - start >= max(_PERIODS * period, 1e-9):
            break
    else:
        start, end = max(quarters, key=lambda quarter: quarter[1] - quarter[0])
        if end <= start:
            return None
    busy = {}
    for report in result.ranks:
        spans = [
            (max(event.start_s, start), min(event.end_s, end))
            for event in report.events
            if event.kind != WAIT and event.end_s > start and event.start_s < end
        ]
        busy[report.rank] = union_s(spans) / (end - start)
    return Steady(start, end, period, busy, working)


def _full(result: Result[Any]) -> tuple[tuple[float, float], tuple[int, ...]]:
    """The time from when the last rank has begun with generated frames until the first one is through with them, and
    the ranks that count: those that denoise or sleep."""
    spans: dict[int, tuple[float, float]] = {}
    for report in result.ranks:
        work = [event for event in report.events if event.kind in _GENERATING]
        if work:
            spans[report.rank] = min(event.start_s for event in work), max(event.end_s for event in work)
    if not spans:
        return (0.0, 0.0), ()
    full = max(start for start, _ in spans.values()), min(end for _, end in spans.values())
    return full, tuple(sorted(spans))


def union_s(spans: Iterable[tuple[float, float]]) -> float:
    """Seconds that at least one span covers."""
    total, reach = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reach))
        reach = max(reach, end)
    return total


def _shown_by_session(times: Iterable[FrameTime]) -> list[list[float]]:
    shown: dict[int, list[float]] = {}
    for time in times:
        shown.setdefault(time.session, []).append(time.shown_s)
    return [sorted(shown[session]) for session in sorted(shown)]
