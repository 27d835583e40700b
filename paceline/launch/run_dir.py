"""The private folder of one run: spec, sockets, logs, progress, failures and the result.

Progress is a board of rows in shared memory, so that reporting costs a store and no system call. A row is two
little-endian 64-bit numbers: what the worker counted (frames that are done), and how often it reported. A worker that
waits for others still reports; one that hangs doesn't.
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from paceline.launch.errors import ArgumentError
from paceline.launch.files import write_bytes

__all__ = ["ProgressBoard", "ProgressRow", "ProgressWriter", "RunDir", "RunDirPaths"]


_ROW = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class ProgressRow:
    """What one worker last reported."""

    count: int
    reports: int


class ProgressBoard:
    """The supervisor's side: makes the file and reads it."""

    def __init__(self, path: Path, world_size: int) -> None:
        path.write_bytes(bytes(_ROW.size * world_size))
        with path.open("rb") as file:
            self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def read(self, rank: int) -> ProgressRow:
        """The row of a rank; all zero before its first report."""
        count, reports = _ROW.unpack_from(self._memory, rank * _ROW.size)
        return ProgressRow(count, reports)

    def close(self) -> None:
        """Unmap the file."""
        self._memory.close()


class ProgressWriter:
    """A worker's side; call it with the number of frames that are done."""

    def __init__(self, path: Path, rank: int) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self._offset = rank * _ROW.size
        self._reports = 0

    def __call__(self, count: int) -> None:
        self._reports += 1
        _ROW.pack_into(self._memory, self._offset, count, self._reports)


_PREFIX = "paceline-"
# A unix socket's path holds at most 107 bytes; names inside the folder need some of them.
_LONGEST_PARENT = 50
# What a run without outputs needs, and some more.
_NEEDED_BYTES = 16 << 20
_FULL_BYTES = 64 << 10
_REMEDY = "a run keeps its sockets and logs there; make room, or set TMPDIR to another folder"
# Waits for a line that only an orderly end sends. End of file means that this process is gone, however it went.
_GUARD = 'read -r done || { sleep 0.3; rm -rf -- "$1"; }'


@dataclass(slots=True)
class RunDirPaths:
    """What lies where in the folder."""

    path: Path

    @property
    def spec(self) -> Path:
        """The run spec as JSON."""
        return self.path / "spec.json"

    @property
    def progress(self) -> Path:
        """The progress board."""
        return self.path / "progress"

    @property
    def result(self) -> Path:
        """What the leader leaves behind."""
        return self.path / "result.msgpack"

    @property
    def stream(self) -> Path:
        """Committed text of language sessions, as it comes."""
        return self.path / "stream.jsonl"

    @property
    def full(self) -> bool:
        """Whether the disk that the folder is on takes no more."""
        return shutil.disk_usage(self.path).free < _FULL_BYTES

    def log(self, rank: int) -> Path:
        """Standard output and error of a worker."""
        return self.path / f"rank-{rank}.log"

    def pid(self, rank: int) -> Path:
        """The process id of a worker."""
        return self.path / f"rank-{rank}.pid"

    def note_pid(self, rank: int, pid: int) -> None:
        """Write the process id of a worker, whole or not at all: others may look at any time."""
        write_bytes(self.pid(rank), str(pid).encode())

    def failure(self, rank: int) -> Path:
        """Why a worker failed."""
        return self.path / f"failure-{rank}.json"


class RunDir(RunDirPaths):
    """A folder that only this user can enter (0700). Use as a context manager. Raises `ArgumentError` where the folder
    for temporary files can't be written or has no room.

    A small shell outside this process group holds a pipe to this process and removes the folder when the process is
    killed in a way that no handler sees.
    """

    def __init__(self) -> None:
        parent = Path(tempfile.gettempdir())
        if len(os.fsencode(parent)) > _LONGEST_PARENT:
            parent = Path("/tmp")
        try:
            super().__init__(Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent)))
        except OSError as error:
            raise ArgumentError(f"{parent}: {error.strerror or error}; {_REMEDY}") from error
        if shutil.disk_usage(self.path).free < _NEEDED_BYTES:
            self.path.rmdir()
            raise ArgumentError(f"{parent}: the disk has less than {_NEEDED_BYTES >> 20} MiB left; {_REMEDY}")
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "paceline-guard", str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.remove()

    def keep_logs(self, out: Path) -> None:
        """Copy the logs that are not empty to `out/logs`."""
        logs = [log for log in sorted(self.path.glob("rank-*.log")) if log.stat().st_size]
        if logs:
            (out / "logs").mkdir(parents=True, exist_ok=True)
        for log in logs:
            shutil.copyfile(log, out / "logs" / log.name)

    def remove(self) -> None:
        """Remove the folder and let the guard go."""
        shutil.rmtree(self.path, ignore_errors=True)
        # The guard may have been killed by somebody; the folder is gone all the same.
        try:
            self._guard.communicate(b"done\n", timeout=5)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._guard.kill()
            self._guard.wait()
