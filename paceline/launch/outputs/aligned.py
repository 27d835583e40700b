"""A result made ready for pictures: one origin of time, one way to number frames, idle time spelled out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from msgspec.structs import replace

from paceline.runtime.result import Event, Result

__all__ = ["WAIT", "aligned"]

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
