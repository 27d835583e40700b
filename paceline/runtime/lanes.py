"""The lanes of a rank: where stages compute whose compute leaves the interpreter to others.

A stage that sleeps, or that a GPU computes, would keep the worker from its channels for nothing. In a lane it computes
while the worker's thread sends, receives and prepares what comes next, so between two units lies no message at all. A
stage that computes on the CPU stays on the worker's thread: there a second one would only fight it for the interpreter.

A rank has one lane, as it has one device; on a GPU every stage has a lane and a CUDA stream of its own, so that stages
which share a GPU overlap as the hardware allows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from paceline.pipeline.program import Unit, UnitKind
from paceline.pipeline.topology import StageKind, Topology
from paceline.runtime.lane import Finished, Job, Lane
from paceline.stages.base import Stage

__all__ = ["Lanes"]

_AHEAD = frozenset({UnitKind.sleep, UnitKind.decode, UnitKind.layers})
"""Units after which the stream's next one is known before they have run, so that it can be prepared meanwhile."""


class Lanes:
    """The lanes of a rank, and the credit that their jobs will need when they are done.

    `around(unit, side)` is called on a lane's thread before (0) and after (1) a unit; `tell` when a job has finished.
    """

    def __init__(
        self,
        topology: Topology,
        stages: dict[str, Stage],
        device: str,
        around: Callable[[Unit, int], None],
        tell: Callable[[], None],
    ) -> None:
        self._lanes: dict[str, Lane] = {}
        self._of: dict[str, Lane | None] = {}
        self._items: Counter[tuple[int, int]] = Counter()
        self._bytes: Counter[tuple[int, int]] = Counter()
        for stage in stages:
            name = _lane_name(topology.stages[stage].kind, stage, device)
            if name is not None and name not in self._lanes:
                self._lanes[name] = Lane(name, stages, device, around, tell)
            self._of[stage] = None if name is None else self._lanes[name]

    @property
    def idle(self) -> bool:
        """Whether no lane has a job."""
        return all(lane.idle for lane in self._lanes.values())

    def of(self, stage: str) -> Lane | None:
        """The lane of a stage; None where it computes on the worker's own thread."""
        return self._of[stage]

    def promised(self, edge: int, session: int) -> tuple[int, int]:
        """Items and bytes that jobs under way will send: credit that is spoken for."""
        return (self._items[edge, session], self._bytes[edge, session]) if self._lanes else (0, 0)

    def submit(self, lane: Lane, job: Job) -> bool:
        """Give a lane a job. False where the streams' next units depend on it: collect it before asking for them."""
        self._promise(job, 1)
        lane.submit(job)
        return job.units[0].kind in _AHEAD

    def collect(self) -> list[Finished]:
        """The jobs that have finished since the last call."""
        done = []
        for lane in self._lanes.values():
            while (finished := lane.collect()) is not None:
                self._promise(finished.job, -1)
                done.append(finished)
        return done

    def close(self) -> None:
        """End the threads, each after the job that it is at."""
        for lane in self._lanes.values():
            lane.close()

    def _promise(self, job: Job, sign: int) -> None:
        for unit in job.units:
            for give in unit.gives:
                self._items[give.edge, unit.session] += sign
                self._bytes[give.edge, unit.session] += sign * give.nbytes


def _lane_name(kind: StageKind, stage: str, device: str) -> str | None:
    if kind in (StageKind.source, StageKind.sink):
        return None
    if device.startswith("cuda"):
        return stage
    return "rank" if kind is StageKind.sleep else None
