"""A lane: a thread that computes beside the worker's own. `lanes.py` says which stages have one, and why."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator

import torch

from paceline.runtime.actor import Done, Work
from paceline.runtime.clock import now

__all__ = ["Lane"]

DEPTH = 2
"""Work of a lane: one piece that is computed and one that waits for its turn."""


class Lane:
    """Computes work in the order of `submit`. It is in `finished` when it is done, and `tell` is called then, on the
    lane's thread. Before and after the compute, `around(work, side)` is called with side 0 and 1. `cuda_stream`: the
    device on which the lane has a CUDA stream of its own; None for the default stream."""

    def __init__(
        self, name: str, cuda_stream: str | None, around: Callable[[Work, int], None], tell: Callable[[], None]
    ) -> None:
        self.finished: deque[Done] = deque()
        self._cuda_stream, self._around, self._tell = cuda_stream, around, tell
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._under_way = 0
        self._thread = threading.Thread(target=self._run, name=f"paceline-lane-{name}", daemon=True)
        self._thread.start()

    @property
    def full(self) -> bool:
        """Whether it takes no further work now."""
        return self._under_way >= DEPTH

    @property
    def idle(self) -> bool:
        """Whether it has no work, not even work that is done and was not collected."""
        return self._under_way == 0

    def submit(self, work: Work) -> None:
        """Give it work; ask `full` first."""
        self._under_way += 1
        self._queue.put(work)

    def collect(self) -> Done | None:
        """The oldest work that is done."""
        if not self.finished:
            return None
        self._under_way -= 1
        return self.finished.popleft()

    def close(self) -> None:
        """End the thread after the work that it is at."""
        self._queue.put(None)

    def _run(self) -> None:
        with self._stream() as stream:
            while (work := self._queue.get()) is not None:
                self.finished.append(self._compute(work, stream))
                self._tell()

    def _compute(self, work: Work, stream: torch.cuda.Stream | None) -> Done:
        self._around(work, 0)
        start_s = now()
        output = None
        error: Exception | None = None
        try:
            output = work.compute()
            if stream is not None:
                # The items it took may be freed, and those it gives be read on other streams, from here on.
                stream.synchronize()
        except Exception as raised:
            error = raised
        end_s = now()
        self._around(work, 1)
        return Done(work, start_s, end_s, output, error)

    @contextlib.contextmanager
    def _stream(self) -> Iterator[torch.cuda.Stream | None]:
        if self._cuda_stream is None:
            yield None
            return
        stream = torch.cuda.Stream(self._cuda_stream)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            yield stream
