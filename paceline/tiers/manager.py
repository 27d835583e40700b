"""The memory tiers of one rank: who has which blocks, where they lie, what attention found in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline.tiers.attention import Query, TieredAttention
from paceline.tiers.block_stats import BlockStats
from paceline.tiers.errors import TierFull
from paceline.tiers.layout import Budget, Layout, Slots
from paceline.tiers.metrics import TierMetrics
from paceline.tiers.mover import Mover
from paceline.tiers.nvme import Store
from paceline.tiers.packed_memory import stored_nbytes
from paceline.tiers.planner import Room, plan, spare_slots
from paceline.tiers.policies import Policy, make_policy
from paceline.tiers.pool import Blocks
from paceline.tiers.profile import Profile, census
from paceline.tiers.settings import Tier, TierSettings
from paceline.tiers.staging import Staging
from paceline.tiers.storage import Storage
from paceline.tiers.store_file import fingerprint

__all__ = ["TierManager"]

_CHUNK_CPU, _CHUNK_CUDA = 64, 1024
_ALL_AFTER = 16
"""Plans leave out the blocks of nvme that nobody touched (`_near_facts`), until they have looked at so many times as
many blocks as there are; then one plan looks at all. So that one adds a sixteenth to what plans cost, however many
blocks are held."""


class TierManager:
    """The one object per rank that owns its KV blocks. Not thread-safe; what it does beside the compute is its own.

    A block is written in hbm, goes down when others matter more, and is never dropped while somebody refers to it.
    """

    def __init__(
        self,
        layout: Layout,
        budget: Budget,
        settings: TierSettings | None = None,
        device: str | torch.device = "cpu",
        model: str = "",
        rank: int = 0,
        world: int = 1,
        by: Policy | None = None,
    ) -> None:
        """`model` names the weights, for the fingerprint of what is written. `by`: a policy in place of the one that
        the settings name.

        Raises `TierError` where hbm holds fewer than two blocks of each layer, `StoreError` where the folder of the
        nvme tier can't be used, `ValueError` for a policy that there is not.
        """
        self.layout, self.budget = layout, budget
        self.settings = settings or TierSettings()
        self.fingerprint = fingerprint(layout, model, rank, world)
        self.device = device = torch.device(device)
        stored = layout.block_nbytes if self.settings.bits is None else stored_nbytes(layout, self.settings.bits)
        wanted = budget.slots(layout, stored)
        store = None
        if wanted.nvme and budget.path is not None:
            store = Store(
                budget.path,
                self.fingerprint,
                stored,
                wanted.nvme,
                self.settings.deadline_s,
                self.settings.threads,
                self.settings.watermark,
            )
        slots = Slots(wanted.hbm, wanted.dram, 0 if store is None else store.slots)
        chunk = self.settings.chunk or (_CHUNK_CPU if device.type == "cpu" else _CHUNK_CUDA)
        # On the CPU dram is read in place, unless it is packed.
        in_place = device.type == "cpu" and store is None and self.settings.bits is None
        staging = 0 if in_place else 2 * chunk
        self.storage = Storage(layout, slots, staging, device, store, self.settings.bits)
        self.pool = self.storage.pool
        self.policy = by or make_policy(self.settings.policy, self.settings.options, self.settings.known)
        self.profile = Profile()
        self.mover = Mover(self.storage, self._lowest, wanted.nvme, self.settings.asynchronous)
        self.stalls = self.mover.stalls
        self._staging = Staging(self.storage, chunk, self.stalls)
        self._attention = TieredAttention(self.storage, self._staging, self.profile, self.settings)
        self._tally = TierMetrics(self.storage, self._staging, self.stalls)
        self.on_masses: Callable[[Query, NDArray[np.float64]], None] | None = None
        """Called with every query whose masses were measured, and the mass of each of its blocks."""
        self.on_release: Callable[[Blocks], None] | None = None
        """Called with blocks that nobody holds any more, before their numbers are used again."""
        self.spare: Callable[[], bool] | None = None
        """Called where no tier has room; lets go of blocks that are held for later, and says whether there were any."""
        self._lengths: dict[int, int] = {}
        self._numbers = count()
        self.now = 0
        """Steps so far."""
        self._measured = False
        self._touched: list[Blocks] = []
        """Blocks that lay in nvme when attention read them or measured their mass, since the last plan"""
        self._looked: int | None = None
        """Blocks that plans have looked at since one looked at all; None before the first"""
        self._spare = tuple(
            spare_slots(number, self.settings.spare, layout.layers) for number in (slots.hbm, slots.dram, slots.nvme)
        )

    # -- sessions ------------------------------------------------------------------------------------------------------

    def open(self, session: int | None = None) -> int:
        """Open a session; gives its number, a fresh one where none is named. Raises `ValueError` if it is open."""
        if session is None:
            session = next(number for number in self._numbers if number not in self._lengths)
        if session in self._lengths:
            raise ValueError(f"session {session} is open already")
        self._lengths[session] = 0
        return session

    def close(self, session: int) -> None:
        """Forget a session. Its blocks are released by who holds them, before or after."""
        self._lengths.pop(session, None)

    def extend(self, session: int, length: int) -> None:
        """Note how long a session is, in positions (or frames): policies look at it."""
        self._lengths[session] = length

    # -- blocks --------------------------------------------------------------------------------------------------------

    def allocate(self, session: int, layer: int, start: int, place: int = -1, sink: bool = False) -> int:
        """A new block of zeros for one holder. Raises `TierFull` where no tier has room for one more."""
        tier = self._with_room()
        while tier is None and self.spare is not None and self.spare():
            tier = self._with_room()
        if tier is None:
            raise TierFull(
                f"no tier has room for another block of session {session}: {len(self.pool)} blocks of "
                f"{self.layout.block_nbytes} bytes are held; raise the budgets, or run fewer or shorter sessions"
            )
        block = self.storage.add(tier, session, layer, start, place, sink)
        self.profile.add(np.asarray([block]), self.now)
        return block

    def write(self, block: int, offset: int, k_GnD: Tensor, v_GnD: Tensor) -> None:
        """Write tokens `[G, n, D]` into a block, from its token `offset` on; it should have one holder.

        Raises `BlockLost` where its other tokens can't be read back, `ValueError` where the tokens pass its end.
        """
        if offset < 0 or offset + k_GnD.shape[1] > self.layout.block_size:
            raise ValueError(f"{k_GnD.shape[1]} tokens from {offset} on pass a block of {self.layout.block_size}")
        if self.pool.tier[block] != Tier.hbm:
            self._bring_to_write(block)
        self.storage.write(block, offset, k_GnD, v_GnD)
        self.profile.use(np.asarray([block]), self.now)

    def share(self, blocks: Blocks | Sequence[int]) -> None:
        """One more holder for each of some different blocks."""
        self.pool.references[np.asarray(blocks, dtype=np.int64)] += 1

    def release(self, blocks: Blocks | Sequence[int]) -> None:
        """One holder fewer for each of some different blocks; those that nobody holds any more are freed."""
        numbers = np.asarray(blocks, dtype=np.int64)
        self.pool.references[numbers] -= 1
        gone = numbers[self.pool.references[numbers] <= 0]
        if self.on_release is not None and len(gone):
            self.on_release(gone)
        for block in gone.tolist():
            self.storage.remove(block)
            self.mover.unreadable.discard(block)

    def copy(self, block: int, session: int) -> int:
        """A block of one holder with the content of another, for copy-on-write. Raises `TierFull`, `BlockLost`."""
        pool = self.pool
        keys, values = self.fetch([block])
        new = self.allocate(session, int(pool.layer[block]), int(pool.start[block]), int(pool.place[block]))
        pool.sink[new] = pool.sink[block]
        self.write(new, 0, keys[0], values[0])
        return new

    def where(self, blocks: Blocks | Sequence[int]) -> tuple[NDArray[np.int8], Blocks]:
        """Tier and slot of each block."""
        return self.storage.locate(np.asarray(blocks, dtype=np.int64))

    # -- reading -------------------------------------------------------------------------------------------------------

    def fetch(self, blocks: Blocks | Sequence[int]) -> tuple[Tensor, Tensor]:
        """Keys and values `[N, G, B, D]` of blocks on the device, bit for bit as they were written. Counts as a lookup
        of each. Raises `BlockLost`."""
        parts = list(self.stream(blocks))
        if len(parts) == 1:
            return parts[0]
        return torch.cat([keys for keys, _ in parts]), torch.cat([values for _, values in parts])

    def stream(self, blocks: Blocks | Sequence[int], chunk: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """`fetch` piece by piece, at most `chunk` blocks each, through the staging rows."""
        numbers = np.asarray(blocks, dtype=np.int64)
        size = min(chunk or self._staging.chunk, self._staging.chunk)
        home = self.storage.memory.home
        self.mover.await_promotions(numbers)
        for low in range(0, max(len(numbers), 1), size):
            some = numbers[low : low + size]
            self._look_up(some)
            staged = self._staging.begin(some)
            rows = torch.from_numpy(self._staging.rows(staged)).to(home.device)
            keys, values = home.keys_SGBD.index_select(0, rows), home.values_SGBD.index_select(0, rows)
            self._staging.used(staged)
            yield keys, values

    def attend(self, query: Query) -> Tensor:
        """Attention `[H, M, D]` float32 of the rows of a query. Raises `BlockLost`."""
        attended = self._attention.attend(query, self.measuring)
        self._look_up(attended.read)
        self._tally.omission.skipped += len(query.blocks) - len(attended.read)
        self._tally.omission.take(attended)
        if attended.masses is not None:
            self.record(query.blocks, attended.masses)
            if self.on_masses is not None:
                self.on_masses(query, attended.masses)
        return attended.out_HMD

    def record(self, blocks: Blocks, masses: NDArray[np.float64]) -> None:
        """Take in the attention masses of one call over different blocks."""
        self.profile.record(self.now, blocks, masses)
        self._note_touched(blocks)
        self._measured = True

    @property
    def measuring(self) -> bool:
        """Whether this step measures attention masses: every `refresh` steps."""
        return self.now % self.settings.refresh == 0

    # -- moving --------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """A forward has ended: take in what was moved, decide what moves next, and begin it."""
        self._tally.stepped()
        self.mover.take()
        self.now += 1
        free = self.storage.free
        pressed = any(len(free[tier]) < self._spare[tier] for tier in (Tier.hbm, Tier.dram) if free[tier].count)
        if pressed or (self._measured and self._cold()):
            if self._looked is None or self._looked >= _ALL_AFTER * len(self.pool):
                facts, self._looked = self.facts(), 0
            else:
                facts = self._near_facts()
                self._looked += len(facts)
            self._touched.clear()
            scores = self.policy.keep(facts, self.now)
            self.mover.start(plan(facts, scores, self._room(facts), self.settings.bandwidth, self.settings.hysteresis))
        self._measured = False

    def prefetch(self, blocks: Blocks | Sequence[int]) -> None:
        """Begin to bring blocks to hbm, as far as there is free room: they will be read soon, so that counts as use."""
        self.mover.take()
        numbers = np.asarray(blocks, dtype=np.int64)
        self.profile.use(numbers, self.now)
        pool = self.pool
        for source in (Tier.dram, Tier.nvme):
            some = numbers[(pool.tier[numbers] == source) & ~pool.moving[numbers] & ~pool.lost[numbers]]
            self.mover.raise_now(some.tolist(), source)

    def facts(self) -> BlockStats:
        """What policies are told of all blocks."""
        return self._facts(self.pool.blocks())

    def _near_facts(self) -> BlockStats:
        """What policies are told where a decision is to cost what changed, and not what is held: all blocks of hbm and
        dram, and of nvme, the one tier that grows with a session, those that attention has looked at since."""
        pool = self.pool
        near = np.flatnonzero(pool.live & (pool.tier != Tier.nvme))
        touched = np.unique(np.concatenate(self._touched)) if self._touched else near[:0]
        return self._facts(np.concatenate([near, touched[pool.live[touched] & (pool.tier[touched] == Tier.nvme)]]))

    def _facts(self, blocks: Blocks) -> BlockStats:
        size = self.layout.block_size
        return census(self.pool, self.profile, self._lengths, size, self.mover.unreadable, blocks)

    def close_all(self) -> None:
        """End the threads and remove the file; nothing can be read any more."""
        self.mover.close()
        self._staging.close()
        if self.storage.store is not None:
            self.storage.store.close()

    # -- what happened -------------------------------------------------------------------------------------------------

    def statistics(self) -> dict[str, object]:
        """What the JSON of a run says of a group's tiers; counts are since the manager was made."""
        return self._tally.statistics()

    # -- within --------------------------------------------------------------------------------------------------------

    def _with_room(self) -> Tier | None:
        """A tier that a new block can be written in."""
        if self.mover.make_room(Tier.hbm):
            return Tier.hbm
        possible = self.storage.memory.stored_in_place and self.storage.free[Tier.dram].count > 0
        return Tier.dram if possible and self.mover.make_room(Tier.dram) else None

    def _look_up(self, blocks: Blocks) -> None:
        self._tally.looked_up(self.pool.tier[blocks])
        self.profile.touch(self.now, blocks)
        self._note_touched(blocks)

    def _note_touched(self, blocks: Blocks) -> None:
        far = blocks[self.pool.tier[blocks] == Tier.nvme]
        if len(far):
            self._touched.append(far)

    def _bring_to_write(self, block: int) -> None:
        """A block that is written belongs into hbm; where it can't come there, dram will do."""
        with self.stalls.waiting("write"):
            try:
                self.mover.bring(block, Tier.hbm)
            except TierFull:
                if not self.storage.memory.stored_in_place:
                    raise
                if self.pool.tier[block] == Tier.nvme:
                    self.mover.bring(block, Tier.dram)

    def _lowest(self, tier: Tier, most: int) -> list[int]:
        """Blocks of a tier that may leave it, those that matter least first; ones still being written come last."""
        facts = self._near_facts()
        pool = self.pool
        scores = self.policy.keep(facts, self.now)
        may = (facts.tier == tier) & ~pool.moving[facts.block] & ~pool.lost[facts.block]
        rows = np.flatnonzero(may)
        order = np.lexsort((-facts.start[rows], scores[rows], pool.open[facts.block[rows]]))
        chosen = facts.block[rows[order]]
        closed = chosen[~pool.open[chosen]]
        return [int(block) for block in (closed[:most] if len(closed) else chosen[:1])]

    def _cold(self) -> bool:
        return any(free.taken > 0 for free in self.storage.free[1:])

    def _room(self, facts: BlockStats) -> Room:
        """Slots as a plan may use them: what is on its way already holds its target too."""
        held = np.bincount(facts.tier, minlength=3).tolist()
        free = [len(slots) for slots in self.storage.free]
        store = self.storage.store
        if store is not None and store.full:
            free[Tier.nvme] = 0
        hbm, dram, nvme = (number + left for number, left in zip(held, free, strict=True))
        return Room(hbm, dram, nvme, free_hbm=self._spare[0], free_dram=self._spare[1])
