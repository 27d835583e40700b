"""The end of a run: every rank reports to the coordinator, which also fetches what lies in files of other hosts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from paceline.runtime.endpoint import Endpoint
from paceline.runtime.result import EVENTS_FILE, RankReport
from paceline.runtime.spool import spool_parts

__all__ = ["ReportExchange"]

_REPORT, _FETCH, _PART, _STOP = "report", "fetch", "part", "stop"
_WAIT_S = 0.2
_MOST_BYTES = 2**20


class _Fetch(msgspec.Struct, frozen=True, array_like=True):
    """Asks for bytes of one of the two files of a rank's events."""

    part: int
    offset: int


class ReportExchange:
    """One rank's side. No message grows with the run: a report is of fixed size, and events go in pieces of at most
    1 MiB, each asked for when the one before is written."""

    def __init__(
        self,
        endpoint: Endpoint,
        rank: int,
        world_size: int,
        run_dir: Path,
        max_message: int,
        heartbeat: Callable[[], None],
    ) -> None:
        """`heartbeat` is called while this waits."""
        self._endpoint, self._rank, self._world_size = endpoint, rank, world_size
        self._run_dir, self._heartbeat = run_dir, heartbeat
        self._piece = min(_MOST_BYTES, max_message)
        self._waiting: list[tuple[int, str, bytes]] = []

    def give(self, coordinator: int, report: RankReport) -> None:
        """Report, hand out events as long as they are asked for, and return when the coordinator ends the run.

        Raises what a lost peer or a channel raises, and `OSError` where the events can't be read.
        """
        self._endpoint.control(coordinator, _REPORT, msgspec.msgpack.encode(report))
        parts = spool_parts(self._events(self._rank))
        while True:
            _, kind, payload = self._next(_FETCH, _STOP)
            if kind == _STOP:
                return
            fetch = msgspec.msgpack.decode(payload, type=_Fetch)
            self._endpoint.control(coordinator, _PART, _read(parts[fetch.part], fetch.offset, self._piece))

    def gather(self, with_events: bool) -> list[RankReport]:
        """The reports of all other ranks; then ends the run for them. With `with_events`, the files of their events
        are in this rank's folder afterwards.

        Raises what a lost peer or a channel raises, and `OSError` where the events can't be written.
        """
        reports = []
        for _ in range(self._world_size - 1):
            _, _, payload = self._next(_REPORT)
            reports.append(msgspec.msgpack.decode(payload, type=RankReport))
        for report in reports:
            if with_events and not self._events(report.rank).exists():
                self._fetch(report.rank)
        for report in reports:
            self._endpoint.control(report.rank, _STOP, b"")
        return reports

    def _fetch(self, rank: int) -> None:
        """Ranks that share a folder never come here: their files are there before they report."""
        for part, path in enumerate(spool_parts(self._events(rank))):
            offset = 0
            with path.open("wb") as file:
                while True:
                    self._endpoint.control(rank, _FETCH, msgspec.msgpack.encode(_Fetch(part, offset)))
                    _, _, piece = self._next(_PART)
                    if not piece:
                        break
                    file.write(piece)
                    offset += len(piece)

    def _next(self, *kinds: str) -> tuple[int, str, bytes]:
        """The oldest control message of some kinds; others wait until they are asked for."""
        while True:
            seen = self._endpoint.version
            self._waiting += self._endpoint.controls()
            for index, message in enumerate(self._waiting):
                if message[1] in kinds:
                    return self._waiting.pop(index)
            self._endpoint.wait(seen, _WAIT_S)
            self._heartbeat()

    def _events(self, rank: int) -> Path:
        return self._run_dir / EVENTS_FILE.format(rank)


def _read(path: Path, offset: int, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(most)
    except FileNotFoundError:
        return b""
