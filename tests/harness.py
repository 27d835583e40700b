"""Runs a function or a command as N ranks in processes of their own, for tests.

Every rank gets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. At the deadline, and in any case at the end, the whole
tree of processes is killed; when a rank fails, the logs of all of them are in the error.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    """A tcp port that was free just now, below those that the kernel gives to outgoing connections."""
    while True:
        port = 12_000 + secrets.randbelow(20_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@dataclass(frozen=True, slots=True)
class Ended:
    """How a rank ended: its exit code, negative for a signal, and all it printed."""

    rank: int
    code: int
    log: str


class Ranks:
    """Running ranks. `target` is a function of a test module, called with `args` (JSON values), or a command line."""

    def __init__(
        self,
        world_size: int,
        target: Callable[..., object] | Sequence[str],
        args: Sequence[Any] = (),
        env: Mapping[str, str] | None = None,
        ranks: Sequence[int] | None = None,
    ) -> None:
        if callable(target):
            command = [sys.executable, __file__, inspect.getfile(target), target.__name__, json.dumps(list(args))]
        else:
            command = list(target)
        self._folder = tempfile.TemporaryDirectory(prefix="ranks-")
        self.port = free_port()
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        for rank in range(world_size) if ranks is None else ranks:
            places = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank, "MASTER_PORT": self.port}
            with open(self._log(rank), "wb") as log:
                self.processes[rank] = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env={
                        **os.environ,
                        "PYTHONPATH": str(ROOT),
                        "PYTHONUNBUFFERED": "1",
                        "OMP_NUM_THREADS": "1",
                        "MASTER_ADDR": "127.0.0.1",
                        **{name: str(value) for name, value in places.items()},
                        **(env or {}),
                    },
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )

    def _log(self, rank: int) -> Path:
        return Path(self._folder.name) / f"{rank}.log"

    def log(self, rank: int) -> str:
        """What a rank has printed so far."""
        return self._log(rank).read_text(errors="replace")

    def until(self, text: str, ranks: Sequence[int] | None = None, deadline_s: float = 30.0) -> None:
        """Wait until the ranks have printed a text."""
        deadline = time.monotonic() + deadline_s
        for rank in self.processes if ranks is None else ranks:
            while text not in self.log(rank):
                if time.monotonic() > deadline or self.processes[rank].poll() is not None:
                    raise AssertionError(f"rank {rank} did not print {text!r}\n{self.logs()}")
                time.sleep(0.02)

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to one rank."""
        self.processes[rank].send_signal(number)

    def wait(self, deadline_s: float = 60.0, check: bool = True) -> list[Ended]:
        """Wait for all ranks. Raises `AssertionError` with all logs at the deadline and, with `check`, on a failure."""
        deadline = time.monotonic() + deadline_s
        for process in self.processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"not done within {deadline_s:g} s\n{self.logs()}") from None
        ended = [Ended(rank, process.returncode, self.log(rank)) for rank, process in self.processes.items()]
        if check and any(rank.code for rank in ended):
            raise AssertionError(f"exit codes {[rank.code for rank in ended]}\n{self.logs()}")
        return ended

    def logs(self) -> str:
        """The logs of all ranks, each under a heading."""
        return "\n".join(f"--- rank {rank}\n{self.log(rank)}" for rank in self.processes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes.values():
            kill_tree(process.pid)
            process.wait()
        self._folder.cleanup()


def kill_tree(pid: int) -> None:
    """Kill a process and all that it started, stopped ones included."""
    try:
        tree = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        tree = []
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    for process in tree:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def run_ranks(
    world_size: int, target: Callable[..., object] | Sequence[str], *args: Any, deadline_s: float = 60.0
) -> list[str]:
    """Run to the end and return what each rank printed. Raises `AssertionError` where one failed."""
    with Ranks(world_size, target, args) as ranks:
        return [rank.log for rank in ranks.wait(deadline_s)]


def _main(file: str, function: str, args: str) -> None:
    spec = importlib.util.spec_from_file_location("target", file)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["target"] = module
    spec.loader.exec_module(module)
    getattr(module, function)(*json.loads(args))


if __name__ == "__main__":
    _main(*sys.argv[1:])
