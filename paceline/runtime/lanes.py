"""The lanes of a rank: where stages compute whose compute leaves the interpreter to others.

A stage that sleeps, or that a GPU computes, would keep the worker from its channels for nothing. In a lane it computes
while the worker's thread sends, receives and prepares what comes next, so between two pieces of work lies no message at
all. A stage that computes on the CPU stays on the worker's thread: there a second one would only fight it for the
interpreter.

A rank has one lane, as it has one device; on a GPU every stage of a world has a lane and a CUDA stream of its own, so
that stages which share a GPU overlap as the hardware allows. A language model keeps to the default CUDA stream: what
the worker's thread does to its KV between two forwards is ordered with them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from paceline.pipeline.topology import StageKind, Topology
from paceline.runtime.actor import Done, Work
from paceline.runtime.lane import Lane

__all__ = ["Lanes"]


class Lanes:
    """The lanes of a rank, and the credit that their work will need when it is done.

    `around(work, side)` is called on a lane's thread before (0) and after (1) work; `notify` when it is done.
    """

    def __init__(
        self,
        topology: Topology,
        stages: Iterable[str],
        device: str,
        around: Callable[[Work, int], None],
        notify: Callable[[], None],
    ) -> None:
        self._lanes: dict[str, Lane] = {}
        self._of: dict[str, Lane | None] = {}
        self._items: Counter[tuple[int, int]] = Counter()
        self._bytes: Counter[tuple[int, int]] = Counter()
        for stage in stages:
            kind = topology.stages[stage].kind
            name = _lane_name(kind, stage, device)
            if name is not None and name not in self._lanes:
                own = device.startswith("cuda") and kind not in _DEFAULT_STREAM
                self._lanes[name] = Lane(name, device if own else None, around, notify)
            self._of[stage] = None if name is None else self._lanes[name]

    @property
    def idle(self) -> bool:
        """Whether no lane has work."""
        return all(lane.idle for lane in self._lanes.values())

    def of(self, stage: str) -> Lane | None:
        """The lane of a stage; None where it computes on the worker's own thread."""
        return self._of[stage]

    def promised(self, edge: int, session: int) -> tuple[int, int]:
        """Items and bytes that work under way will send: credit that is reserved."""
        return (self._items[edge, session], self._bytes[edge, session]) if self._lanes else (0, 0)

    def submit(self, lane: Lane, work: Work) -> None:
        """Give a lane work."""
        self._promise(work, 1)
        lane.submit(work)

    def collect(self) -> list[Done]:
        """The work that is done since the last call."""
        done = []
        for lane in self._lanes.values():
            while (finished := lane.collect()) is not None:
                self._promise(finished.work, -1)
                done.append(finished)
        return done

    def close(self) -> None:
        """End the threads, each after the work that it is at."""
        for lane in self._lanes.values():
            lane.close()

    def _promise(self, work: Work, sign: int) -> None:
        for promise in work.promises:
            self._items[promise.edge, promise.session] += sign
            self._bytes[promise.edge, promise.session] += sign * promise.nbytes


_DEFAULT_STREAM = frozenset({StageKind.draft, StageKind.verify})


def _lane_name(kind: StageKind, stage: str, device: str) -> str | None:
    if kind in (StageKind.source, StageKind.sink):
        return None
    if device.startswith("cuda"):
        return stage
    return "rank" if kind is StageKind.sleep else None
