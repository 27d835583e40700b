"""A real `paceline run` that tests can hurt: its workers by rank, how far it is, and what it leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from paceline.launch.run_dir import RunDirPaths
from tests.harness import ROOT, kill_tree

TWO_RANKS = """
name: two-ranks
workload: sleep
groups: {early: {ranks: 1}, late: {ranks: 1}}
stages:
  source: {kind: source, group: early}
  step0: {kind: sleep, group: early, ms: 5}
  step1: {kind: sleep, group: late, ms: 5}
  sink: {kind: sink, group: early}
edges:
  - {from: source, to: step0}
  - {from: step0, to: step1, via: VIA}
  - {from: step1, to: sink, via: VIA}
"""
COMMAND = (sys.executable, "-c", "from paceline.launch.cli import main; main()", "run")
_SHARED_MEMORY = Path("/dev/shm")


def write_topology(folder: Path, via: str = "zmq") -> Path:
    """A topology of two ranks that only sleep."""
    path = folder / "two-ranks.yaml"
    path.write_text(TWO_RANKS.replace("VIA", via))
    return path


class Run:
    """A running command in a temporary folder of its own, so that whatever it leaves behind is seen."""

    def __init__(self, folder: Path, *options: str, command: Sequence[str] = COMMAND, via: str = "zmq") -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="t-")
        self.temporary = Path(self._temporary.name)
        self._shared = set(_SHARED_MEMORY.iterdir())
        self._output, self._errors = folder / "output", folder / "errors"
        argv = [*command, str(write_topology(folder, via)), "--frames", "100000", "--quiet", *options]
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                argv, cwd=ROOT, env=_environment(self.temporary), stdout=output, stderr=errors, start_new_session=True
            )
        self.family: list[psutil.Process] = []

    @property
    def output(self) -> str:
        """Standard output so far."""
        return self._output.read_text()

    @property
    def errors(self) -> str:
        """Standard error so far."""
        return self._errors.read_text()

    def workers(self) -> dict[int, psutil.Process]:
        """The workers by rank."""
        found = {}
        for file in self.temporary.glob("paceline-*/rank-*.pid"):
            found[int(file.stem.removeprefix("rank-"))] = psutil.Process(int(file.read_text()))
        return found

    def until_frames(self, count: int = 5, world_size: int = 2, deadline_s: float = 60.0) -> dict[int, psutil.Process]:
        """Wait until some frames are done; the workers."""
        deadline = time.monotonic() + deadline_s
        while True:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"no {count} frames:\n{self.output}\n{self.errors}")
            folders = list(self.temporary.glob("paceline-*/progress"))
            if folders and folders[0].stat().st_size and self._frames(folders[0].parent) >= count:
                break
            time.sleep(0.05)
        self.family = psutil.Process(self.process.pid).children(recursive=True)
        workers = self.workers()
        assert sorted(workers) == list(range(world_size))
        return workers

    @staticmethod
    def _frames(folder: Path) -> int:
        # Reads the file instead of mapping it, since it may go any moment.
        board = RunDirPaths(folder).progress.read_bytes()
        return int.from_bytes(board[:8], "little")

    def wait(self, deadline_s: float) -> int:
        """The exit code. Raises `AssertionError` where it takes longer."""
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {deadline_s:g} s:\n{self.errors}") from None

    def check_nothing_left(self, deadline_s: float = 2.0) -> None:
        """No process of the run, no file in its temporary folder, and no new shared memory, within a moment."""
        deadline = time.monotonic() + deadline_s
        while True:
            processes = [process for process in self.family if _lives(process)]
            files = list(self.temporary.iterdir())
            shared = sorted(set(_SHARED_MEMORY.iterdir()) - self._shared)
            if not (processes or files):
                assert [path for path in shared if "torch" in path.name or "paceline" in path.name] == []
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"left behind: {processes}, {files}")
            time.sleep(0.02)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.family:
            if _lives(process):
                process.kill()
        kill_tree(self.process.pid)
        self.process.wait()
        self._temporary.cleanup()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _environment(temporary: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
