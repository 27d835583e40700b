"""Threads for reads and writes, which are given up after a deadline: a disk that hangs holds a thread, not us."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

__all__ = ["IOThreads", "Task"]


class Task:
    """A call on one of the threads."""

    __slots__ = ("_call", "_done", "error", "given_up", "replaced", "started")

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._done = threading.Event()
        self.started: float | None = None
        self.error: Exception | None = None
        self.given_up = False
        """Nobody waits for it any more."""
        self.replaced = False
        """Another thread has come for the one that it holds."""

    def run(self) -> None:
        """Make the call; an exception of it is kept in `error`."""
        try:
            self._call()
        except Exception as error:  # handed to who waits
            self.error = error
        self._done.set()

    def wait(self, timeout: float) -> bool:
        """Whether it has ended within `timeout` seconds."""
        return self._done.wait(timeout)


class IOThreads:
    """Daemon threads, so that one that hangs doesn't keep the process. A hung one is replaced, as long as not more than
    `spares` are."""

    def __init__(self, threads: int, deadline_s: float, spares: int = 8, name: str = "nvme") -> None:
        self.deadline_s = deadline_s
        self._spares = spares
        self._name = name
        self._queue: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._started = 0
        self.hung = 0
        """Calls that were given up and have not come back so far."""
        for _ in range(threads):
            self._start()

    @property
    def exhausted(self) -> bool:
        """Whether every thread hangs, those that came in their place included."""
        return self.hung >= self._threads

    def submit(self, call: Callable[[], None]) -> Task:
        """Put a call into the queue."""
        task = Task(call)
        self._queue.put(task)
        return task

    def wait(self, task: Task) -> bool:
        """Wait for a task; False where it took longer than the deadline from its start, or has not come to start
        because all threads hang. A call that was given up may still end: what it touches has to stay its own."""
        patience = time.monotonic() + self.deadline_s
        while True:
            started = task.started
            limit = patience if started is None else started + self.deadline_s
            if task.wait(max(limit - time.monotonic(), 0.0)):
                return True
            if task.started == started:
                break
        with self._lock:
            if task.wait(0):
                return True
            task.given_up = True
            if task.started is not None:
                self.hung += 1
                if self._spares:
                    self._spares -= 1
                    task.replaced = True
                    self._start()
        return False

    def close(self) -> None:
        """Let the threads end when the queue is empty."""
        for _ in range(self._threads):
            self._queue.put(None)

    def _start(self) -> None:
        self._threads += 1
        self._started += 1
        threading.Thread(target=self._work, name=f"{self._name}-{self._started}", daemon=True).start()

    def _work(self) -> None:
        while (task := self._queue.get()) is not None:
            with self._lock:
                if task.given_up:
                    continue
                task.started = time.monotonic()
            task.run()
            if self._came_back(task):
                return

    def _came_back(self, task: Task) -> bool:
        """Count a call that has ended; whether its thread is one too many now."""
        with self._lock:
            if not task.given_up:
                return False
            self.hung -= 1
            if not task.replaced:
                return False
            self._spares += 1
            self._threads -= 1
            return True
