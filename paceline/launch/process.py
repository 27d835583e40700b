"""One worker process: how it is started, and how it is ended for certain."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from paceline.launch.fork import Forked, can_fork

__all__ = ["PARENT_VARIABLE", "Worker", "WorkerCommand", "stop"]

PARENT_VARIABLE = "PACELINE_PARENT"
"""Process id of the supervisor, so that a worker that starts after its end notices."""

_GRACE_S = 0.5


@dataclass(frozen=True, slots=True)
class WorkerCommand:
    """What to start for a rank.

    `name` is what messages call it; `inherit` are file descriptors that it gets; the run can do without an `expendable`
    one. With `main`, the worker is forked from this process where that is safe, and calls it; else `argv` is executed.
    """

    rank: int
    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    inherit: tuple[int, ...] = ()
    expendable: bool = False
    main: Callable[[], None] | None = None


class Worker:
    """A running worker, leader of a session and process group of its own, so that a terminal's Ctrl-C goes to the
    supervisor alone and what the worker starts can be ended with it."""

    def __init__(self, command: WorkerCommand, log: Path) -> None:
        self.rank = command.rank
        self.name = command.name
        self._code: int | None = None
        self._process: Forked | subprocess.Popen[bytes]
        env = {**os.environ, **command.env, PARENT_VARIABLE: str(os.getpid())}
        with log.open("wb") as output:
            if command.main is not None and can_fork():
                self._process = Forked(command.main, env, output.fileno(), command.inherit)
                return
            self._process = subprocess.Popen(
                command.argv,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=command.inherit,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id, which is also the id of its process group."""
        return self._process.pid

    def poll(self) -> int | None:
        """Exit code, negative for a signal; None while it runs. What it started ends with it."""
        if self._code is None:
            self._code = self._process.poll()
            if self._code is not None:
                self._signal(signal.SIGKILL)
        return self._code

    def state(self) -> str:
        """The kernel's letter for what it does (R runs, S sleeps, T stopped, ...); empty where there is no /proc."""
        try:
            status = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return ""
        return status.rpartition(")")[2].split()[0]

    def send(self, signum: int) -> None:
        """Send a signal to the worker and all that it started, unless it has ended already."""
        if self.poll() is None:
            self._signal(signum)

    def reap(self) -> None:
        """Wait for the end of a worker that was killed."""
        self._process.wait()
        self.poll()

    def _signal(self, signum: int) -> None:
        # Where nobody is left in the group there is nothing to do.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signum)


def stop(workers: Iterable[Worker], hurry: Callable[[], bool] = lambda: False) -> None:
    """End all workers: SIGTERM, half a second to leave (none once `hurry` says so), then SIGKILL."""
    workers = list(workers)
    for worker in workers:
        worker.send(signal.SIGTERM)
    end = time.monotonic() + _GRACE_S
    while time.monotonic() < end and not hurry() and any(worker.poll() is None for worker in workers):
        time.sleep(0.005)
    for worker in workers:
        worker.send(signal.SIGKILL)
    for worker in workers:
        worker.reap()
