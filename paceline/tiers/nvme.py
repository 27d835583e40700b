"""The nvme tier: one preallocated file of slots, each with a checksum that is kept in memory.

The checksums lie apart from the slots on purpose: a write that went to the wrong place or never arrived is found as
surely as a flipped bit. The file is scratch of one process; sessions that are to outlive it are parked (`parking.py`).
"""

from __future__ import annotations

import errno
import logging
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paceline.tiers.checksum import crc32c
from paceline.tiers.io_threads import IOThreads, Task
from paceline.tiers.pool import Blocks
from paceline.tiers.store_file import PAGE, Fingerprint, StoreFile

__all__ = ["Failure", "Parts", "Store"]

Parts = tuple[NDArray[np.uint8], ...]
"""Bytes of a block, in one piece or several: those of its keys and those of its values."""

_PIECE = 1 << 20
"""Bytes of one read or write at most: neighbours in the file go together."""
_MOST_WRITE_FAILURES = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a slot could not be written or read: `kind` is checksum, truncated, timeout, full, read or write."""

    kind: str
    cause: str


class Store:
    """Slots of `nbytes` bytes in a file. `write` and `read` may be called by several threads, not for the same slot."""

    def __init__(
        self,
        folder: Path,
        fingerprint: Fingerprint,
        nbytes: int,
        slots: int,
        deadline_s: float = 5.0,
        threads: int = 4,
        watermark: int = 0,
    ) -> None:
        """Make the file; see `StoreFile` for what it raises. Where the disk has less room than asked for, there are
        fewer slots, and a warning in the log."""
        self.nbytes = nbytes
        self.stride = -(-nbytes // PAGE) * PAGE
        self._file = StoreFile.make(folder, fingerprint, self.stride, slots, watermark)
        self.slots = self._file.slots
        if self.slots < slots:
            _log.warning(
                "nvme: %s has room for %d of %d blocks; the rest stays in dram. Free space there, or lower nvme.size",
                folder, self.slots, slots,
            )  # fmt: skip
        self._sums: NDArray[np.int64] = np.full(self.slots, -1, dtype=np.int64)
        self._threads = IOThreads(threads, deadline_s)
        self._depth = 2 * threads
        self._group = max(1, _PIECE // self.stride)
        self._bounces: list[mmap.mmap] = []
        self.read_bytes = 0
        self.written_bytes = 0
        self._write_failures = 0
        self.full = self.slots == 0
        """Nothing is written any more; what is there can be read."""

    @property
    def path(self) -> Path:
        """The name that the file had, for messages."""
        return self._file.path

    @property
    def open_path(self) -> Path:
        """Where this process finds the open file."""
        return self._file.open_path

    @property
    def direct(self) -> bool:
        """Whether reads and writes go past the page cache (O_DIRECT)."""
        return self._file.direct

    @property
    def hung(self) -> int:
        """Reads and writes that were given up."""
        return self._threads.hung

    def write(self, slots: Blocks, parts: Sequence[Parts]) -> dict[int, Failure]:
        """Write blocks into slots; gives, by index, those that could not be written."""
        if self.full:
            return {index: Failure("full", f"{self.path} takes no more") for index in range(len(slots))}
        failures: dict[int, Failure] = {}

        def prepare(first: int, indices: Sequence[int], bounce: mmap.mmap) -> Callable[[], None]:
            for place, index in enumerate(indices):
                at = np.frombuffer(bounce, dtype=np.uint8, count=self.nbytes, offset=place * self.stride)
                np.concatenate(parts[index], out=at)
                self._sums[slots[index]] = crc32c(at)
            size = len(indices) * self.stride
            return lambda: self._file.write(first, memoryview(bounce)[:size])

        def accept(indices: Sequence[int], bounce: mmap.mmap) -> None:
            self.written_bytes += len(indices) * self.stride

        self._carry_out(slots, "write", prepare, accept, failures)
        if failures:
            self._write_failures += 1
            kinds = {failure.kind for failure in failures.values()}
            if self._write_failures >= _MOST_WRITE_FAILURES or "full" in kinds or self._threads.exhausted:
                self.full = True
                cause = next(iter(failures.values())).cause
                _log.warning("nvme: nothing is written to %s any more: %s; blocks stay in dram", self.path, cause)
        return failures

    def read(self, slots: Blocks, targets: Sequence[Parts]) -> dict[int, Failure]:
        """Read slots into targets; gives, by index, those that could not be read. A target is written only where the
        checksum is right."""
        if self._threads.exhausted:
            cause = f"{self.hung} reads and writes of {self.path} have not come back; it is given up"
            return {index: Failure("timeout", cause) for index in range(len(slots))}
        failures: dict[int, Failure] = {}

        def prepare(first: int, indices: Sequence[int], bounce: mmap.mmap) -> Callable[[], None]:
            size = len(indices) * self.stride
            return lambda: self._file.read(first, memoryview(bounce)[:size])

        def accept(indices: Sequence[int], bounce: mmap.mmap) -> None:
            self.read_bytes += len(indices) * self.stride
            for place, index in enumerate(indices):
                at = np.frombuffer(bounce, dtype=np.uint8, count=self.nbytes, offset=place * self.stride)
                if crc32c(at) != self._sums[slots[index]]:
                    failures[index] = Failure("checksum", f"slot {slots[index]} of {self.path} has a wrong CRC-32C")
                    continue
                begin = 0
                for part in targets[index]:
                    part[:] = at[begin : begin + len(part)]
                    begin += len(part)

        self._carry_out(slots, "read", prepare, accept, failures)
        return failures

    def close(self) -> None:
        """Let go of the file. Where a call hangs, it stays open until the process ends: the call would else go on with
        whatever file gets the same number."""
        self._threads.close()
        if not self._threads.hung:
            self._file.close()

    def _carry_out(
        self,
        slots: Blocks,
        kind: str,
        prepare: Callable[[int, Sequence[int], mmap.mmap], Callable[[], None]],
        accept: Callable[[Sequence[int], mmap.mmap], None],
        failures: dict[int, Failure],
    ) -> None:
        """Do groups of neighbouring slots, a few at a time."""
        pending: list[tuple[Task, list[int], mmap.mmap]] = []
        for indices in self._groups(slots):
            if len(pending) >= self._depth:
                self._settle(*pending.pop(0), kind, accept, failures)
            bounce = self._bounces.pop() if self._bounces else mmap.mmap(-1, self._group * self.stride)
            call = prepare(int(slots[indices[0]]), indices, bounce)
            pending.append((self._threads.submit(call), indices, bounce))
        for entry in pending:
            self._settle(*entry, kind, accept, failures)

    def _settle(
        self,
        task: Task,
        indices: list[int],
        bounce: mmap.mmap,
        kind: str,
        accept: Callable[[Sequence[int], mmap.mmap], None],
        failures: dict[int, Failure],
    ) -> None:
        if not self._threads.wait(task):
            # The buffer stays with the call, which may still write into it.
            cause = f"a {kind} of {self.path} has not come back in {self._threads.deadline_s:g} s"
            failures.update({index: Failure("timeout", cause) for index in indices})
            return
        if task.error is None:
            accept(indices, bounce)
        else:
            failure = _failure(kind, task.error)
            failures.update({index: failure for index in indices})
        self._bounces.append(bounce)

    def _groups(self, slots: Blocks) -> list[list[int]]:
        """Indices of slots, by runs of neighbours of at most a piece."""
        groups: list[list[int]] = []
        for index in np.argsort(slots, kind="stable").tolist():
            last = groups[-1] if groups else None
            if last and slots[last[-1]] + 1 == slots[index] and len(last) < self._group:
                last.append(index)
            else:
                groups.append([index])
        return groups


def _failure(kind: str, error: Exception) -> Failure:
    if isinstance(error, EOFError):
        return Failure("truncated", str(error))
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return Failure("full" if full else kind, f"{kind} failed: {error}")
