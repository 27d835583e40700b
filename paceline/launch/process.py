"""Worker processes: forked from the launcher or started, with their threads set, and ended for certain.

A forked worker need not import torch and Transformers again. Importing both takes two to three seconds of CPU time a
process, on a machine that may have fewer cores than ranks. A forked process has them already. That is safe only where
this process has computed nothing on several threads and has touched no GPU: OpenMP's threads and a CUDA context do not
survive a fork. `prepare_fork` sees to the first, and `can_fork` looks.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

__all__ = [
    "PARENT_VARIABLE",
    "Forked",
    "Worker",
    "WorkerCommand",
    "can_fork",
    "leave",
    "prepare_fork",
    "stop",
    "thread_environment",
]


_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_WAITING = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
"""By the OpenMP runtime, GNU's (torch's wheels) and LLVM's or Intel's. A thread that spins at the end of a parallel
region takes the core from the one that it waits for, as soon as anything else runs on the machine."""


def thread_environment(threads: int, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment of a process whose math libraries use so many threads, which sleep while they wait. What
    `environment` says of waiting stays."""
    waiting = {name: environment.get(name, value) for name, value in _WAITING.items()}
    return {**dict.fromkeys(_COUNTS, str(threads)), **waiting}


# Of new objects. Imports make hundreds of thousands that stay; the usual 700 has the collector walk them over and over,
# a tenth of the time that the imports take.
_FEW_COLLECTIONS = 100_000
# As Python has it for standard error: a name of a file may be no text.
_ESCAPED = "backslashreplace"
_usual_thresholds = gc.get_threshold()
_prepared = False


def prepare_fork() -> None:
    """Let this process fork workers later. It computes on one thread from now on. Does nothing where torch was loaded
    before, since it may have started threads."""
    global _prepared
    if sys.platform != "linux" or "torch" in sys.modules:
        return
    os.environ.update(thread_environment(1))
    # Where whoever started this process ignores it, the kernel keeps no exit code of a child.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    gc.set_threshold(_FEW_COLLECTIONS)
    _prepared = True


def leave(end: SystemExit) -> NoReturn:
    """End this process with the code of `end`. Where torch was loaded for the workers, it ends without taking that
    apart, which takes up to a second; handlers of `atexit` are run."""
    if "torch" not in sys.modules:
        raise end
    code = 0 if end.code is None else end.code
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        # A stream that takes no more was reported where it was written to.
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def can_fork() -> bool:
    """Whether a worker can be forked from this process now."""
    if not _prepared or threading.active_count() > 1:
        return False
    torch = sys.modules.get("torch")
    return torch is None or (torch.get_num_threads() == 1 and not torch.cuda.is_initialized())


class Forked:
    """A process that was forked from this one: calls `main` in a session of its own, with an environment, its output in
    the file `log`, and no file of this process's but those in `inherit`. It has the methods of `subprocess.Popen` that
    are needed of it."""

    def __init__(self, main: Callable[[], None], env: Mapping[str, str], log: int, inherit: Iterable[int] = ()) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self._status: int | None = None
        self.pid = os.fork()
        if not self.pid:
            _become(main, env, log, inherit)

    def poll(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._reap(os.WNOHANG)

    def wait(self) -> int:
        """Exit code, once it has ended."""
        code = self._reap(0)
        assert code is not None
        return code

    def _reap(self, options: int) -> int | None:
        if self._status is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status


def _become(main: Callable[[], None], env: Mapping[str, str], log: int, inherit: Iterable[int]) -> NoReturn:
    code = 1
    try:
        code = _call(main, env, log, inherit)
    finally:
        # Neither the handlers nor the open blocks of the process that this one was forked from are run here, whatever
        # was raised: nothing else may stand in this block.
        os._exit(code)


def _call(main: Callable[[], None], env: Mapping[str, str], log: int, inherit: Iterable[int]) -> int:
    """The exit code. What can't be written to the log, as its disk is full, is lost."""
    try:
        # What the other process made is not collected here: that would close files by their numbers.
        gc.freeze()
        gc.set_threshold(*_usual_thresholds)
        os.setsid()
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_DFL if signum == signal.SIGTERM else signal.default_int_handler)
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        _close_all_but({0, 1, 2, *inherit})
        sys.stdin = io.TextIOWrapper(os.fdopen(0, "rb", closefd=False))
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), line_buffering=True)
        sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", 0, closefd=False), errors=_ESCAPED, write_through=True)
        os.environ.clear()
        os.environ.update(env)
        main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        code = 1
        with contextlib.suppress(OSError):
            traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    return code


def _close_all_but(kept: set[int]) -> None:
    # Listed first: the listing has a file of its own, which is closed by then.
    for number in [int(name) for name in os.listdir("/proc/self/fd")]:
        if number not in kept:
            try:
                os.close(number)
            except OSError:
                continue


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
