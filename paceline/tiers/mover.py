"""Who moves blocks: a thread beside the compute, or at once where compute can't go on without, and what that cost it.

The thread only copies. What moves where is entered into the tables by the thread that decides, between two of its own
steps; so the tables need no lock, and a block that changed while it was copied just stays where it was.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby

from paceline.tiers.errors import BlockLost, TierFull
from paceline.tiers.planner import Move
from paceline.tiers.pool import Blocks
from paceline.tiers.settings import Tier
from paceline.tiers.storage import Job, Storage

__all__ = ["Mover", "Stalls"]


@dataclass(slots=True)
class Stalls:
    """How often and how long compute waited. Causes: `hbm_full` and `dram_full` (a block had to be demoted at once),
    `move` (for a move that was on its way), `write` (a block that lay far was written), `nvme` (attention read from
    there)."""

    count: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    _deep: int = 0

    @contextmanager
    def waiting(self, cause: str) -> Iterator[None]:
        """Count what is done inside as a stall; of stalls inside one another, the outer one has the seconds."""
        self.count[cause] = self.count.get(cause, 0) + 1
        start = time.perf_counter()
        self._deep += 1
        try:
            yield
        finally:
            self._deep -= 1
            if not self._deep:
                self.seconds[cause] = self.seconds.get(cause, 0.0) + time.perf_counter() - start


_BATCH = 8
"""Blocks that make room together, where one is needed at once."""
_GROWTH = 16

_log = logging.getLogger(__name__)


class Mover:
    """Carries out moves, and makes room where there is none."""

    def __init__(
        self, storage: Storage, lowest: Callable[[Tier, int], Sequence[int]], promised: int, asynchronous: bool = True
    ) -> None:
        """`lowest(tier, n)`: at most n blocks of a tier that may be demoted, those first that matter least.
        `promised`: blocks that nvme was to hold; what it can't, dram may hold beyond its budget."""
        self._storage, self._lowest = storage, lowest
        self._promised = promised
        self._overflow = 0
        self.stalls = Stalls()
        self._running: deque[Job] = deque()
        self._ended: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._given: queue.SimpleQueue[Job | None] | None = None
        if asynchronous:
            self._given = queue.SimpleQueue()
            threading.Thread(target=self._work, args=(self._given,), name="mover", daemon=True).start()
        self.unreadable: set[int] = set()
        """Blocks that could not be moved up: they are left where they are until somebody needs them."""

    # -- moves beside the compute --------------------------------------------------------------------------------------

    def start(self, moves: Iterable[Move]) -> None:
        """Begin moves, in their order, as far as there is room now; the others are for the next plan."""
        for (source, target), group in groupby(moves, key=lambda move: (move.source, move.target)):
            pool = self._storage.pool
            blocks = [m.block for m in group if pool.live[m.block] and pool.tier[m.block] == source]
            job = self._storage.begin(blocks, target)
            if job is None:
                continue
            if self._given is None or job.clean.all():
                self._storage.run(job)
                self._finish(job)
            else:
                self._running.append(job)
                self._given.put(job)

    def raise_now(self, blocks: Sequence[int], source: Tier) -> None:
        """Begin to bring blocks of one tier to hbm, as many of the first as fit."""
        self.start(Move(block, source, Tier.hbm) for block in blocks)

    def take(self) -> None:
        """Enter into the tables what has been moved since."""
        while self._running:
            try:
                job = self._ended.get_nowait()
            except queue.Empty:
                return
            self._end(job)

    def drain(self) -> None:
        """Wait until nothing is on its way."""
        while self._running:
            self._end(self._ended.get())

    def await_promotions(self, blocks: Blocks) -> None:
        """Wait for those of some blocks that are on their way up from nvme, so that nobody reads them twice."""
        if not self._promoting(blocks):
            return
        with self.stalls.waiting("move"):
            while self._promoting(blocks):
                self._end(self._ended.get())

    def _promoting(self, blocks: Blocks) -> bool:
        pool = self._storage.pool
        return bool((pool.moving[blocks] & (pool.tier[blocks] == Tier.nvme)).any())

    def close(self) -> None:
        """End the thread, when it has done what it was given."""
        self.drain()
        if self._given is not None:
            self._given.put(None)

    @property
    def moving(self) -> int:
        """Blocks on their way."""
        return sum(len(job.blocks) for job in self._running)

    def _work(self, given: queue.SimpleQueue[Job | None]) -> None:
        while (job := given.get()) is not None:
            try:
                self._storage.run(job)
            except Exception as error:  # handed to who decides
                job.error = error
            self._ended.put(job)

    def _end(self, job: Job) -> None:
        self._running.remove(job)
        if job.error is not None:
            raise job.error
        self._finish(job)

    def _finish(self, job: Job) -> None:
        failed = self._storage.finish(job)
        if job.source is Tier.nvme:
            self.unreadable.update(failed)

    # -- room at once --------------------------------------------------------------------------------------------------

    def make_room(self, tier: Tier) -> bool:
        """See that a tier has a free slot; False where no block can leave it."""
        storage = self._storage
        free = storage.free[tier]
        self.take()
        if len(free):
            return True
        if any(job.source is tier for job in self._running):
            with self.stalls.waiting("move"):
                while not len(free) and any(job.source is tier for job in self._running):
                    self._end(self._ended.get())
            if len(free):
                return True
        if tier is Tier.nvme:
            return False
        with self.stalls.waiting(f"{tier.name}_full"):
            if self._push_down(tier):
                return True
            if any(job.target is tier for job in self._running):
                # Every slot may be one that something is on its way to; once it has come, it can leave.
                self.drain()
                if len(free) or self._push_down(tier):
                    return True
            return tier is Tier.dram and self._overflows()

    def bring(self, block: int, tier: Tier) -> None:
        """Move a block at once. Raises `TierFull` where there is no room for it, `BlockLost` where it can't be read."""
        storage = self._storage
        if storage.pool.moving[block]:
            with self.stalls.waiting("move"):
                self.drain()
        if storage.pool.tier[block] == tier:
            return
        if not self.make_room(tier):
            raise TierFull(f"no block can leave {tier.name}; raise its budget")
        # Making room may have moved it.
        if storage.pool.tier[block] == tier:
            return
        job = self._at_once([block], tier)
        pool = storage.pool
        if pool.tier[block] != tier:
            failure = None if job is None else job.failures.get(0)
            cause = "it could not be read before" if failure is None else failure.cause
            pool.lost[block] = True
            raise BlockLost(block, int(pool.session[block]), int(pool.layer[block]), int(pool.start[block]), cause)

    def _push_down(self, tier: Tier) -> bool:
        free = self._storage.free
        blocks = list(self._lowest(tier, _BATCH))
        if not blocks:
            return False
        # Dram comes again at the end: nvme may just have failed, so that dram takes what it should have taken.
        for lower in (Tier.dram, Tier.nvme, Tier.dram) if tier is Tier.hbm else (Tier.nvme,):
            if not self._exists(lower):
                continue
            if len(free[lower]) or self.make_room(lower):
                self._at_once(blocks[: len(free[lower])], lower)
                if len(free[tier]):
                    return True
        return False

    def _exists(self, tier: Tier) -> bool:
        if tier is Tier.nvme:
            return self._storage.store is not None and not self._storage.store.full
        return self._storage.free[tier].count > 0 or self._lacking() > 0

    def _at_once(self, blocks: Sequence[int], target: Tier) -> Job | None:
        job = self._storage.begin(blocks, target)
        if job is not None:
            self._storage.run(job)
            self._finish(job)
        return job

    def _lacking(self) -> int:
        """Blocks that nvme was to hold and can't, and that dram has not yet got room for instead."""
        store = self._storage.store
        if store is None:
            return 0
        usable = self._storage.free[Tier.nvme].taken if store.full else store.slots
        return self._promised - usable - self._overflow

    def _overflows(self) -> bool:
        """Where the disk is full or broken, dram takes what it should have taken; better than ending a session."""
        lacking = self._lacking()
        if lacking < 1:
            return False
        self.drain()
        slots = min(lacking, max(_GROWTH, self._storage.free[Tier.dram].count // 4))
        self._overflow += slots
        self._storage.grow_dram(slots)
        size = self._storage.layout.block_nbytes
        _log.warning("dram takes %d bytes beyond its budget, as nvme has no room for these blocks", slots * size)
        return True
