"""The end of a run: the leader ends it, every rank reports, and the leader fetches files of other hosts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from paceline.runtime.endpoint import Endpoint
from paceline.runtime.errors import PeerLost
from paceline.runtime.result import EVENTS_FILE, RankReport
from paceline.runtime.spool import spool_parts
from paceline.runtime.timeline import now

__all__ = ["ReportExchange"]

_END, _REPORT, _FETCH, _PART, _STOP = "end", "report", "fetch", "part", "stop"
_WAIT_S = 0.1
_MOST_BYTES = 2**20


class _Fetch(msgspec.Struct, frozen=True, array_like=True):
    """Asks for bytes of one of the two files of a rank's events."""

    part: int
    offset: int


class ReportExchange:
    """One rank's side. No message grows with the run: a report is of fixed size, and events go in pieces of at most
    1 MiB, each asked for when the one before is written.

    The leader calls `end` and then `gather`; every other rank looks at `ended` while it works, and calls `give` when it
    is done. Ranks that the run can do without may be lost at any moment; they are left out.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        run_dir: Path,
        max_message: int,
        heartbeat: Callable[[], None],
    ) -> None:
        """`heartbeat` is called while this waits."""
        self._endpoint = endpoint
        self._others = [other for other in range(endpoint.world_size) if other != endpoint.rank]
        self._run_dir, self._heartbeat = run_dir, heartbeat
        self._piece = min(_MOST_BYTES, max_message)
        self._waiting: list[tuple[int, str, bytes]] = []

    @property
    def ended(self) -> bool:
        """Whether the leader has ended the run."""
        self._waiting += self._endpoint.controls()
        return any(kind == _END for _, kind, _ in self._waiting)

    def give(self, leader: int, report: RankReport) -> None:
        """Report, hand out events as long as they are asked for, and return when the leader needs nothing more.

        Raises what a lost peer or a channel raises, and `OSError` where the events can't be read.
        """
        parts = spool_parts(self._events(self._endpoint.rank))
        try:
            self._endpoint.control(leader, _REPORT, msgspec.msgpack.encode(report))
            while (message := self._next(lambda: leader in self._endpoint.departed, _FETCH, _STOP)) is not None:
                _, kind, payload = message
                if kind == _STOP:
                    return
                fetch = msgspec.msgpack.decode(payload, type=_Fetch)
                self._endpoint.control(leader, _PART, _read(parts[fetch.part], fetch.offset, self._piece))
        except PeerLost:
            # A leader that left in order did not wait for this rank.
            if leader not in self._endpoint.departed:
                raise

    def end(self, deadline_s: float | None = None, send: Callable[[], bool] = lambda: True) -> None:
        """End the run for all other ranks, after `send` has sent what still waits for credit; it says whether it has.
        At `deadline_s` what still waits is given up."""
        while True:
            seen = self._endpoint.version
            if send() or (deadline_s is not None and now() > deadline_s):
                break
            self._endpoint.wait(seen, _WAIT_S)
            self._heartbeat()
        for rank in self._others:
            self._control(rank, _END)

    def gather(self, with_events: bool, deadline_s: float | None = None) -> list[RankReport]:
        """The reports of all other ranks, or of those that report before `deadline_s`. With `with_events`, the files of
        their events are in this rank's folder afterwards.

        Raises what a lost peer or a channel raises, and `OSError` where the events can't be written.
        """

        def over() -> bool:
            missing = set(self._others) - reports.keys() - self._endpoint.lost
            return not missing or (deadline_s is not None and now() > deadline_s)

        reports: dict[int, RankReport] = {}
        while (message := self._next(over, _REPORT)) is not None:
            rank, _, payload = message
            reports[rank] = msgspec.msgpack.decode(payload, type=RankReport)
        for rank in reports:
            if with_events and not self._events(rank).exists():
                self._fetch(rank)
        for rank in self._others:
            self._control(rank, _STOP)
        return list(reports.values())

    def _control(self, rank: int, kind: str, payload: bytes = b"") -> None:
        if rank in self._endpoint.lost:
            return
        try:
            self._endpoint.control(rank, kind, payload)
        except PeerLost:
            if not self._endpoint.expendable(rank):
                raise
            self._endpoint.lost.add(rank)

    def _fetch(self, rank: int) -> None:
        """Ranks that share a folder never come here: their files are there before they report."""
        for part, path in enumerate(spool_parts(self._events(rank))):
            offset = 0
            with path.open("wb") as file:
                while True:
                    self._control(rank, _FETCH, msgspec.msgpack.encode(_Fetch(part, offset)))
                    message = self._next(lambda: rank in self._endpoint.lost, _PART)
                    if message is None or not message[2]:
                        break
                    file.write(message[2])
                    offset += len(message[2])

    def _next(self, over: Callable[[], bool], *kinds: str) -> tuple[int, str, bytes] | None:
        """The oldest control message of some kinds; others wait until they are asked for. None if `over` and there is
        none."""
        while True:
            self._endpoint.pump()
            seen = self._endpoint.version
            self._waiting += self._endpoint.controls()
            for index, message in enumerate(self._waiting):
                if message[1] in kinds:
                    return self._waiting.pop(index)
            if over():
                return None
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
