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

__all__ = ["Lane", "computed"]

DEPTH = 2
"""Work of a lane: one piece that is computed and one that waits for its turn."""


def computed(work: Work, around: Callable[[Work, int], None], complete: Callable[[], None] = lambda: None) -> Done:
    """Compute work on this thread, with `around(work, side)` before (0) and after (1). `complete` waits until a device
    has done it, and counts as computing. An error is kept in what is returned."""
    around(work, 0)
    start_s = now()
    output, error = None, None
    try:
        output = work.compute()
        complete()
    except Exception as raised:
        error = raised
    end_s = now()
    around(work, 1)
    return Done(work, start_s, end_s, output, error)


class Lane:
    """Computes work in the order of `submit`. It is in `finished` when it is done, and `notify` is called then, on the
    lane's thread. Before and after the compute, `around(work, side)` is called with side 0 and 1. `cuda_stream`: the
    device on which the lane has a CUDA stream of its own; None for the default stream."""

    def __init__(
        self, name: str, cuda_stream: str | None, around: Callable[[Work, int], None], notify: Callable[[], None]
    ) -> None:
        self.finished: deque[Done] = deque()
        self._cuda_stream, self._around, self._notify = cuda_stream, around, notify
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
        with self._stream() as complete:
            while (work := self._queue.get()) is not None:
                self.finished.append(computed(work, self._around, complete))
                self._notify()

    @contextlib.contextmanager
    def _stream(self) -> Iterator[Callable[[], None]]:
        """While active, this thread computes on the lane's stream; gives what waits for it. The items that work took
        may be freed, and those it gives be read on other streams, from then on."""
        if self._cuda_stream is None:
            yield lambda: None
            return
        stream = torch.cuda.Stream(self._cuda_stream)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            yield stream.synchronize
