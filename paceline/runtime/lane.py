"""A lane: a thread that computes beside the worker's own. `lanes.py` says which stages have one, and why."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from paceline.pipeline.dispatch import Stream
from paceline.pipeline.program import Unit
from paceline.runtime.clock import now
from paceline.stages.base import Stage
from paceline.stages.item import Item

__all__ = ["Finished", "Job", "Lane"]

DEPTH = 2
"""Jobs of a lane: one that is computed and one that waits for its turn."""


@dataclass(frozen=True, slots=True)
class Job:
    """Units of one stage with the items that they took, and the streams that they belong to."""

    streams: Sequence[Stream]
    units: Sequence[Unit]
    taken: Sequence[Sequence[Item]]


@dataclass(frozen=True, slots=True)
class Finished:
    """A job that ran, from when to when, and what it gave, or what it raised."""

    job: Job
    start_s: float
    end_s: float
    given: Sequence[Sequence[Item]]
    error: Exception | None


class Lane:
    """Computes jobs in the order of `submit`; they are in `finished` when they are done, and `tell` is called then,
    on the lane's thread. Before and after the compute, `around(unit, side)` is called with side 0 and 1."""

    def __init__(
        self,
        name: str,
        stages: dict[str, Stage],
        device: str,
        around: Callable[[Unit, int], None],
        tell: Callable[[], None],
    ) -> None:
        self.finished: deque[Finished] = deque()
        self._stages, self._device, self._around, self._tell = stages, device, around, tell
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._under_way = 0
        self._thread = threading.Thread(target=self._run, name=f"paceline-lane-{name}", daemon=True)
        self._thread.start()

    @property
    def full(self) -> bool:
        """Whether it takes no further job now."""
        return self._under_way >= DEPTH

    @property
    def idle(self) -> bool:
        """Whether it has no job, not even a finished one that was not collected."""
        return self._under_way == 0

    def submit(self, job: Job) -> None:
        """Give it a job; ask `full` first."""
        self._under_way += 1
        self._jobs.put(job)

    def collect(self) -> Finished | None:
        """The oldest job that has finished."""
        if not self.finished:
            return None
        self._under_way -= 1
        return self.finished.popleft()

    def close(self) -> None:
        """End the thread after the job that it is at."""
        self._jobs.put(None)

    def _run(self) -> None:
        with self._stream() as stream:
            while (job := self._jobs.get()) is not None:
                self.finished.append(self._compute(job, stream))
                self._tell()

    def _compute(self, job: Job, stream: torch.cuda.Stream | None) -> Finished:
        first = job.units[0]
        self._around(first, 0)
        start_s = now()
        given: Sequence[Sequence[Item]] = ()
        error: Exception | None = None
        try:
            given = self._stages[first.stage].run(job.units, job.taken)
            if stream is not None:
                # The items it took may be freed, and those it gives be read on other streams, from here on.
                stream.synchronize()
        except Exception as raised:
            error = raised
        end_s = now()
        self._around(first, 1)
        return Finished(job, start_s, end_s, given, error)

    @contextlib.contextmanager
    def _stream(self) -> Iterator[torch.cuda.Stream | None]:
        if not self._device.startswith("cuda"):
            yield None
            return
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            yield stream
