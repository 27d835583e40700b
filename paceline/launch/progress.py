"""The progress board: shared memory in which every worker counts, so that reporting costs a store and no system call.

A row is two little-endian 64-bit numbers: what the worker counted (frames that are done), and how often it reported.
A worker that waits for others still reports; one that hangs doesn't.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ProgressBoard", "ProgressRow", "ProgressWriter"]

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
