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

import contextlib
import os
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator

import torch

from paceline.pipeline.stage import StageKind
from paceline.pipeline.topology import Topology
from paceline.runtime.actor import Done, Work
from paceline.runtime.errors import PacelineError
from paceline.runtime.timeline import now

__all__ = ["Lane", "Lanes", "computed", "own_device"]


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


def own_device(device: str) -> str:
    """The device of this rank: plain `cuda` is the GPU that the launcher's LOCAL_RANK counts out."""
    if device == "cuda":
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % max(1, torch.cuda.device_count())}"
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise PacelineError(f"a group asks for device {device}, and torch sees no GPU here; set its device to cpu")
        torch.cuda.set_device(device)
    return device
