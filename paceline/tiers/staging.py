"""Blocks that attention can't read where they lie, brought to the device a chunk at a time.

There are two halves of staging rows: while one chunk is attended, the next is brought.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from paceline.tiers.errors import BlockLost
from paceline.tiers.mover import Stalls
from paceline.tiers.nvme import Failure
from paceline.tiers.pool import Blocks
from paceline.tiers.storage import Storage, cuda_event, cuda_stream

__all__ = ["Staging"]


class Staging:
    """Finds rows of the home arena for blocks, bringing those that have none."""

    def __init__(self, storage: Storage, chunk: int, stalls: Stalls) -> None:
        self._storage, self._stalls = storage, stalls
        self.chunk = chunk
        """Blocks of one chunk at most."""
        self._first = storage.memory.hbm
        self._thread: ThreadPoolExecutor | None = None
        device = storage.memory.device
        self._stream = cuda_stream(device)
        self._half = 0
        self._done: list[torch.cuda.Event | None] = [None, None]
        self.staged_bytes = 0

    def begin(self, blocks: Blocks) -> Staged:
        """Start to bring a chunk of blocks; at most two chunks may be under way or in use."""
        pool = self._storage.pool
        rows = pool.row[blocks]
        missing = np.flatnonzero(rows < 0)
        if not len(missing):
            return Staged(blocks, rows, missing, None, 0)
        half = self._half = 1 - self._half
        first = self._first + half * self.chunk
        rows[missing] = np.arange(first, first + len(missing))
        self.staged_bytes += len(missing) * self._storage.layout.block_nbytes
        # What lies where is looked up now: the tables belong to this thread.
        source = self._storage.locate(blocks[missing])
        if self._stream is None:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="staging")
            future = self._thread.submit(self._storage.stage, source, rows[missing])
            return Staged(blocks, rows, missing, future, half)
        done = self._done[half]
        if done is not None:
            self._stream.wait_event(done)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            failures = self._storage.stage(source, rows[missing])
        ready: Future[dict[int, Failure]] = Future()
        ready.set_result(failures)
        return Staged(blocks, rows, missing, ready, half)

    def rows(self, staged: Staged) -> Blocks:
        """The rows of a chunk, once all are there. Raises `BlockLost` for the first block that can't be read."""
        if staged.future is None:
            return staged.rows
        if staged.future.done():
            failures = staged.future.result()
        else:
            with self._stalls.waiting("nvme"):
                failures = staged.future.result()
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
        if failures:
            failures = self._again(staged, failures)
        if failures:
            self._raise(staged, failures)
        return staged.rows

    def used(self, staged: Staged) -> None:
        """The compute that reads a chunk's rows has been given to the device."""
        if self._stream is not None and staged.future is not None:
            self._done[staged.half] = cuda_event()

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _again(self, staged: Staged, failures: dict[int, Failure]) -> dict[int, Failure]:
        """Try once more what did not hang: the block may have been moved meanwhile, or the disk have had a hiccup."""
        some = np.asarray([index for index, failure in failures.items() if failure.kind != "timeout"], dtype=np.int64)
        left = {index: failure for index, failure in failures.items() if failure.kind == "timeout"}
        if len(some):
            wanted = staged.missing[some]
            found = self._storage.stage(self._storage.locate(staged.blocks[wanted]), staged.rows[wanted])
            left.update({int(some[index]): failure for index, failure in found.items()})
        return left

    def _raise(self, staged: Staged, failures: dict[int, Failure]) -> None:
        pool = self._storage.pool
        self._storage.count(failures.values())
        lost = [(int(staged.blocks[staged.missing[index]]), failure) for index, failure in failures.items()]
        for block, _ in lost:
            pool.lost[block] = True
        block, failure = min(lost, key=lambda entry: int(pool.start[entry[0]]))
        raise BlockLost(block, int(pool.session[block]), int(pool.layer[block]), int(pool.start[block]), failure.cause)


class Staged:
    """A chunk of blocks on its way to rows of the home arena."""

    __slots__ = ("blocks", "future", "half", "missing", "rows")

    def __init__(
        self,
        blocks: Blocks,
        rows: Blocks,
        missing: Blocks,
        future: Future[dict[int, Failure]] | None,
        half: int,
    ) -> None:
        self.blocks, self.rows, self.missing = blocks, rows, missing
        self.future, self.half = future, half
