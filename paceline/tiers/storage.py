"""Blocks in their slots over the tiers, and how they get from one to another. Decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from paceline.tiers.errors import TierFull
from paceline.tiers.free_slots import CleanCopies, Free, FreeSlots
from paceline.tiers.layout import Layout, Slots
from paceline.tiers.memory import Memory
from paceline.tiers.nvme import Failure, Store
from paceline.tiers.packed_memory import PackedMemory
from paceline.tiers.pool import BlockPool, Blocks
from paceline.tiers.settings import Tier

__all__ = ["Job", "Storage", "cuda_event", "cuda_stream"]


@dataclass(slots=True)
class Job:
    """Blocks on their way from one tier to another. What they are copied to is theirs until the job is finished."""

    source: Tier
    target: Tier
    blocks: Blocks
    generations: Blocks
    versions: Blocks
    source_slots: Blocks
    target_slots: Blocks
    clean: NDArray[np.bool_]
    """By index: whether the target slot holds the bytes of the block already, so that nothing is copied."""
    failures: dict[int, Failure] = field(default_factory=dict)
    """By index: blocks that could not be copied."""
    error: Exception | None = None
    """What stopped the whole of it."""
    ready: torch.cuda.Event | None = None
    """On CUDA: the point in the compute's stream after which the job may read and write."""


class Storage:
    """The slots of all tiers and what lies in them. One thread decides; `run` may be called on another."""

    def __init__(
        self,
        layout: Layout,
        slots: Slots,
        staging: int,
        device: torch.device,
        store: Store | None,
        bits: int | None = None,
    ) -> None:
        self.layout = layout
        self.memory: Memory = (
            Memory(layout, slots, staging, device)
            if bits is None
            else PackedMemory(layout, slots, staging, device, bits)
        )
        self.pool = BlockPool()
        self.store = store
        self._dram_slots = FreeSlots(slots.dram)
        self.copies = CleanCopies(slots.nvme)
        self.free: tuple[Free, Free, Free] = (FreeSlots(slots.hbm), self._dram_slots, self.copies)
        self.moved_bytes = 0
        """Bytes that were copied from one tier to another."""
        self.failures: dict[str, int] = {}
        """Failed reads and writes by kind."""
        self.leaving: Callable[[Blocks], None] | None = None
        """Called with blocks that are about to leave hbm."""
        self._stream = cuda_stream(device)

    # -- blocks --------------------------------------------------------------------------------------------------------

    def add(self, tier: Tier, session: int, layer: int, start: int, place: int, sink: bool) -> int:
        """A new block of zeros in hbm or dram. Raises `LookupError` where that tier has no free slot."""
        (slot,) = self.free[tier].take()
        self.memory.clear(tier, slot)
        return self.pool.add(session, layer, start, place, sink, int(tier), slot, self.memory.row(tier, slot))

    def write(self, block: int, offset: int, k_GnD: torch.Tensor, v_GnD: torch.Tensor) -> None:
        """Write tokens into a block of hbm or dram."""
        tier = Tier(int(self.pool.tier[block]))
        self.memory.write(tier, int(self.pool.slot[block]), offset, k_GnD, v_GnD)
        self.pool.filled[block] = max(int(self.pool.filled[block]), offset + k_GnD.shape[1])
        self.pool.version[block] += 1
        self.copies.forget(block)

    def remove(self, block: int) -> None:
        """Forget a block and free its slot, but for one of nvme that could not be read: it is not used again."""
        tier = Tier(int(self.pool.tier[block]))
        if self.pool.lost[block]:
            self.free[tier].retire()
        else:
            self.free[tier].give(int(self.pool.slot[block]))
        self.copies.forget(block)
        self.pool.remove(block)

    def grow_dram(self, slots: int) -> None:
        """Add slots to dram beyond its budget. Nothing may be moving."""
        self._dram_slots.grow(slots)
        self.memory.grow_dram(slots)

    # -- moves ---------------------------------------------------------------------------------------------------------

    def begin(self, blocks: Sequence[int], target: Tier) -> Job | None:
        """Take slots for blocks of one tier, as many of the first as there is room for; None where there is none.

        A block that has a clean copy in nvme goes back to it.
        """
        pool, free = self.pool, self.free[target]
        blocks = blocks[: len(free)]
        if not blocks:
            return None
        numbers = np.asarray(blocks, dtype=np.int64)
        if target is Tier.nvme:
            # As they will be read: a whole frame, or neighbours in a text, layer by layer.
            numbers = numbers[
                np.lexsort((pool.place[numbers], pool.layer[numbers], pool.start[numbers], pool.session[numbers]))
            ]
        slots = np.full(len(numbers), -1, dtype=np.int64)
        if target is Tier.nvme:
            slots[:] = [self.copies.claim(block) for block in numbers.tolist()]
        clean = slots >= 0
        slots[~clean] = free.take(int((~clean).sum()))
        if self.leaving is not None and pool.tier[numbers[0]] == Tier.hbm:
            self.leaving(numbers)
        pool.moving[numbers] = True
        job = Job(
            source=Tier(int(pool.tier[numbers[0]])),
            target=target,
            blocks=numbers,
            generations=pool.generation[numbers],
            versions=pool.version[numbers],
            source_slots=pool.slot[numbers],
            target_slots=slots,
            clean=clean,
        )
        if self._stream is not None:
            job.ready = cuda_event()
        return job

    def run(self, job: Job) -> None:
        """Copy. Touches no table, so it may run beside everything else; returns when the copies are there."""
        if self._stream is None:
            self._copy(job)
            return
        with torch.cuda.stream(self._stream):
            if job.ready is not None:
                self._stream.wait_event(job.ready)
            self._copy(job)
            self._stream.synchronize()

    def finish(self, job: Job) -> list[int]:
        """Enter into the tables what a job has done; gives the blocks that were not moved because of a failure.

        A block that was written or released meanwhile keeps, or has already freed, its old slot; its copy is void.
        """
        pool, free = self.pool, self.free
        failed: list[int] = []
        for index, block in enumerate(job.blocks.tolist()):
            slot = int(job.target_slots[index])
            failure = job.failures.get(index)
            if failure is not None and job.target is Tier.nvme:
                free[Tier.nvme].retire()
            if pool.generation[block] != job.generations[index]:
                if failure is None or job.target is not Tier.nvme:
                    free[job.target].give(slot)
                continue
            pool.moving[block] = False
            if failure is not None:
                self.count([failure])
                failed.append(block)
                if job.target is not Tier.nvme:
                    free[job.target].give(slot)
            elif pool.version[block] != job.versions[index]:
                free[job.target].give(slot)
            else:
                if job.source is Tier.nvme:
                    self.copies.keep(block, int(job.source_slots[index]))
                else:
                    free[job.source].give(int(job.source_slots[index]))
                pool.tier[block], pool.slot[block] = int(job.target), slot
                pool.row[block] = self.memory.row(job.target, slot)
                if not job.clean[index]:
                    self.moved_bytes += self.memory.stored_nbytes
        return failed

    def _copy(self, job: Job) -> None:
        if job.ready is not None and job.target is Tier.dram and job.source is Tier.nvme:
            # The host writes into these rows itself, so it has to wait itself for who still reads them.
            job.ready.synchronize()
        if job.target is Tier.nvme:
            dirty = np.flatnonzero(~job.clean)
            if not len(dirty):
                return
            found = self.memory.save(job.source, job.source_slots[dirty], self._nvme(), job.target_slots[dirty])
            job.failures = {int(dirty[index]): failure for index, failure in found.items()}
        elif job.source is Tier.nvme:
            job.failures = self.memory.load(self._nvme(), job.source_slots, job.target, job.target_slots)
        else:
            self.memory.copy(job.source, job.source_slots, job.target, job.target_slots)

    # -- reading what is not in place ----------------------------------------------------------------------------------

    def locate(self, blocks: Blocks) -> tuple[NDArray[np.int8], Blocks]:
        """Tiers and slots of blocks, as copies."""
        return self.pool.tier[blocks], self.pool.slot[blocks]

    def stage(self, source: tuple[NDArray[np.int8], Blocks], rows: Blocks) -> dict[int, Failure]:
        """Copy blocks that attention can't read in place into rows of the home arena; gives failures by index.
        Touches no table."""
        tiers, slots = source
        near = np.flatnonzero(tiers != Tier.nvme)
        if len(near):
            self.memory.stage(slots[near], rows[near])
        far = np.flatnonzero(tiers == Tier.nvme)
        if not len(far):
            return {}
        found = self.memory.load_rows(self._nvme(), slots[far], rows[far])
        return {int(far[index]): failure for index, failure in found.items()}

    def count(self, failures: Iterable[Failure]) -> None:
        """Count failed reads and writes."""
        for failure in failures:
            self.failures[failure.kind] = self.failures.get(failure.kind, 0) + 1

    def _nvme(self) -> Store:
        if self.store is None:
            raise TierFull("there is no nvme tier; give `nvme` a path and a size")
        return self.store


def cuda_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A new stream of a CUDA device; None for any other device."""
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def cuda_event() -> torch.cuda.Event:
    """The present point of the present stream."""
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event
