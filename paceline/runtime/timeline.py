"""When a rank computed what, and when it had nothing to do; and the clock of all ranks."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from paceline.runtime.result import EVENTS_FILE, EVENTS_KEPT, Event
from paceline.runtime.spool import Spool

__all__ = ["PASSES_KEPT", "PassTimes", "Span", "Timeline", "now"]


_OFFSET = time.time() - time.monotonic()


def now() -> float:
    """Seconds since the epoch; never steps back within a process."""
    return time.monotonic() + _OFFSET


PASSES_KEPT = 4096
"""Passes of each stage whose times are kept for their median, the newest."""

_SHORT_S = 50e-6
"""Waits below this are no event of their own."""
_RECEIVE = "receive"
_UNTIMED = ("prefill", "drain", "emit", "show", "wait", _RECEIVE)
_FLUSH_EVERY = 512


@dataclass(frozen=True, slots=True)
class Span:
    """What was computed for one session: rows are pairs of frame (or first position of a forward) and step, -1 where
    there is no step."""

    stage: str
    session: int
    kind: str
    rows: tuple[tuple[int, int], ...]
    layer: int = 0


class PassTimes:
    """How long one pass (all its units) or item of each stage takes."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, int], dict[tuple[int, int], float]] = {}
        """By stage and session: seconds so far, by frame and step, of the passes whose units come now"""
        self._seconds: dict[str, deque[float]] = {}

    def add(self, stage: str, session: int, passes: Sequence[tuple[int, int]], seconds: float) -> None:
        """Count a unit of some passes, given by frame and step. The units of a stage and session come pass by pass, so
        a unit of other passes ends the ones before."""
        stream = self._open.setdefault((stage, session), {})
        if stream and stream.keys() != set(passes):
            self._end(stage, stream)
        for key in passes:
            stream[key] = stream.get(key, 0.0) + seconds

    def medians_ms(self) -> dict[str, float]:
        """Median milliseconds by stage, of the newest `PASSES_KEPT` passes of each. Ends the passes that are open."""
        for (stage, _), stream in self._open.items():
            self._end(stage, stream)
        return {stage: 1000 * median(seconds) for stage, seconds in sorted(self._seconds.items())}

    def _end(self, stage: str, stream: dict[tuple[int, int], float]) -> None:
        if stream:
            self._seconds.setdefault(stage, deque(maxlen=PASSES_KEPT)).extend(stream.values())
            stream.clear()


class Timeline:
    """What one rank did. Events go to a file in `folder`, the newest `EVENTS_KEPT` of them, or nowhere; what stays in
    memory does not grow with the run."""

    def __init__(self, rank: int, folder: Path | None) -> None:
        """Raises `OSError` where the file can't be made."""
        self.busy_s = self.wait_s = 0.0
        self.passes = PassTimes()
        self._rank = rank
        self._spool = None if folder is None else Spool(folder / EVENTS_FILE.format(rank), EVENTS_KEPT, _FLUSH_EVERY)

    def ran(self, spans: Sequence[Span], start_s: float, end_s: float) -> None:
        """Spans were computed together."""
        self.busy_s += end_s - start_s
        for span in spans:
            if span.kind != _RECEIVE:
                self.note(span.stage, span.session, span.kind, span.rows, span.layer, start_s, end_s)

    def waited(self, start_s: float, end_s: float) -> None:
        """Nothing was ready."""
        self.wait_s += end_s - start_s
        if end_s - start_s > _SHORT_S and self._spool is not None:
            self._spool.write(Event(self._rank, "", -1, "wait", -1, -1, 0, start_s, end_s))

    def note(
        self,
        stage: str,
        session: int,
        kind: str,
        rows: Sequence[tuple[int, int]],
        layer: int,
        start_s: float,
        end_s: float,
    ) -> None:
        """A unit of some rows, given by frame and step; -1 is no step."""
        if kind not in _UNTIMED:
            self.passes.add(stage, session, rows, end_s - start_s)
        if self._spool is not None:
            for frame, step in rows:
                self._spool.write(Event(self._rank, stage, session, kind, frame, step, layer, start_s, end_s))

    def close(self) -> None:
        """Write what is left of the events. Raises `OSError`."""
        if self._spool is not None:
            self._spool.close()
