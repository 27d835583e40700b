"""Storage against a dict of what was written: any sequence of moves, writes, releases and failures gives back its bits.

A job is begun, run and finished in three separate steps, with other operations between them, as with a mover's thread.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from paceline.kernels.quantise import Axis, pack, unpack
from paceline.tiers.errors import TierFull
from paceline.tiers.layout import Slots
from paceline.tiers.nvme import Store
from paceline.tiers.packed_memory import stored_nbytes
from paceline.tiers.settings import Tier
from paceline.tiers.storage import Job, Storage
from paceline.tiers.store_file import PAGE, fingerprint
from tests.tiers.managers import LAYOUT

SLOTS = Slots(hbm=3, dram=3, nvme=5)
CPU = torch.device("cpu")
Content = tuple[Tensor, Tensor]


def storage_of(folder: Path, bits: int | None = None, slots: Slots = SLOTS) -> Storage:
    """Storage of a few slots with one staging row, which is row `slots.hbm` of the home arena."""
    nbytes = LAYOUT.block_nbytes if bits is None else stored_nbytes(LAYOUT, bits)
    store = Store(folder, fingerprint(LAYOUT), nbytes, slots.nvme, threads=1)
    return Storage(LAYOUT, slots, 1, CPU, store, bits)


def tokens(seed: int, count: int = LAYOUT.block_size) -> Content:
    made = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, LAYOUT.heads, count, LAYOUT.head_dim, generator=made)
    return keys, values


def zeros() -> Content:
    shape = LAYOUT.heads, LAYOUT.block_size, LAYOUT.head_dim
    return torch.zeros(shape), torch.zeros(shape)


def read(storage: Storage, block: int) -> Content | str:
    """The content of a block, or the kind of failure."""
    row = int(storage.pool.row[block])
    if row < 0:
        row = storage.memory.hbm
        failures = storage.stage(storage.locate(np.asarray([block])), np.asarray([row]))
        if failures:
            return failures[0].kind
    home = storage.memory.home
    return home.keys_SGBD[row].clone(), home.values_SGBD[row].clone()


def equal(found: Content | str, expected: Content) -> bool:
    return not isinstance(found, str) and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def damage(storage: Storage, slot: int) -> None:
    """Flip a bit of a slot in the file. The page may be in a cache only where the file is not read by O_DIRECT."""
    assert storage.store is not None
    offset = PAGE + slot * storage.store.stride
    with storage.store.open_path.open("r+b", buffering=0) as file:
        (byte,) = os.pread(file.fileno(), 1, offset)
        os.pwrite(file.fileno(), bytes([byte ^ 1]), offset)


def move(storage: Storage, block: int, target: Tier) -> list[int]:
    job = storage.begin([block], target)
    assert job is not None
    storage.run(job)
    return storage.finish(job)


class StorageMachine(RuleBasedStateMachine):
    """`written` is what each live block must give back; `damaged` are slots of the file that were changed, and not
    written since."""

    @initialize()
    def make(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.storage = storage_of(Path(self.folder.name))
        self.written: dict[int, Content] = {}
        self.damaged: set[int] = set()
        self.clean: set[int] = set()
        """Blocks that came from nvme and were not written since"""
        self.jobs: list[tuple[Job, bool]] = []
        """Jobs that are not finished, and whether they have run"""

    def teardown(self) -> None:
        if hasattr(self, "storage"):
            assert self.storage.store is not None
            self.storage.store.close()
            self.folder.cleanup()

    def tier(self, block: int) -> Tier:
        return Tier(int(self.storage.pool.tier[block]))

    def slot(self, block: int) -> int:
        return int(self.storage.pool.slot[block])

    def is_damaged(self, block: int) -> bool:
        return self.tier(block) is Tier.nvme and self.slot(block) in self.damaged

    @rule(tier=st.sampled_from([Tier.hbm, Tier.dram]))
    def add(self, tier: Tier) -> None:
        if not len(self.storage.free[tier]):
            with pytest.raises(LookupError):
                self.storage.add(tier, 0, 0, 0, -1, False)
            return
        block = self.storage.add(tier, 0, 0, 0, -1, False)
        assert block not in self.written
        self.written[block] = zeros()

    @rule(data=st.data(), seed=st.integers(0, 1 << 30), offset=st.integers(0, LAYOUT.block_size - 1))
    def write(self, data: st.DataObject, seed: int, offset: int) -> None:
        near = [block for block in self.written if self.tier(block) is not Tier.nvme]
        if not near:
            return
        block = data.draw(st.sampled_from(near))
        count = data.draw(st.integers(1, LAYOUT.block_size - offset))
        new = tokens(seed, count)
        self.storage.write(block, offset, *new)
        kept = tuple(half.clone() for half in self.written[block])
        for half, part in zip(kept, new, strict=True):
            half[:, offset : offset + count] = part
        self.written[block] = kept[0], kept[1]
        self.clean.discard(block)

    @rule(data=st.data(), source=st.sampled_from(list(Tier)), to=st.sampled_from(list(Tier)))
    def begin(self, data: st.DataObject, source: Tier, to: Tier) -> None:
        still = [b for b in self.written if self.tier(b) is source and not self.storage.pool.moving[b]]
        if source is to or not still:
            return
        blocks = data.draw(st.lists(st.sampled_from(still), min_size=1, unique=True))
        room = len(self.storage.free[to])
        job = self.storage.begin(blocks, to)
        assert (job is None) == (room == 0)
        if job is not None:
            assert job.blocks.tolist() == blocks[:room]
            assert to is Tier.nvme or not job.clean.any()
            assert set(job.blocks[job.clean].tolist()) <= self.clean
            self.jobs.append((job, False))

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def run(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.jobs) - 1))
        job, ran = self.jobs[index]
        if not ran:
            self.storage.run(job)
            if job.target is Tier.nvme:
                self.damaged -= set(job.target_slots[~job.clean].tolist())
            self.jobs[index] = job, True

    @precondition(lambda self: any(ran for _, ran in self.jobs))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        job, _ = data.draw(st.sampled_from([entry for entry in self.jobs if entry[1]]))
        self.jobs = [entry for entry in self.jobs if entry[0] is not job]
        moved = self.storage.moved_bytes
        failed = self.storage.finish(job)
        for block in failed:
            assert block in job.blocks and self.is_damaged(block)
            assert job.source is Tier.nvme
        there = [block for block in job.blocks.tolist() if block in self.written and self.tier(block) is job.target]
        if job.source is Tier.nvme:
            self.clean |= set(there)
        assert self.storage.moved_bytes - moved <= LAYOUT.block_nbytes * int((~job.clean).sum())

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.written:
            block = data.draw(st.sampled_from(sorted(self.written)))
            self.storage.remove(block)
            del self.written[block]
            self.clean.discard(block)

    @rule(data=st.data())
    def break_one(self, data: st.DataObject) -> None:
        """Damage the slot of a block, or the clean copy of one."""
        still = [b for b in self.written if self.tier(b) is Tier.nvme and not self.storage.pool.moving[b]]
        slots = {self.slot(b) for b in still} | set(self.storage.copies.copies().values())
        if slots - self.damaged:
            slot = data.draw(st.sampled_from(sorted(slots - self.damaged)))
            damage(self.storage, slot)
            self.damaged.add(slot)

    @invariant()
    def all_is_there(self) -> None:
        if not hasattr(self, "storage"):
            return
        assert set(self.storage.pool.blocks().tolist()) == set(self.written)
        for block, expected in self.written.items():
            found = read(self.storage, block)
            assert found == "checksum" if self.is_damaged(block) else equal(found, expected), (block, self.tier(block))

    @invariant()
    def no_slot_has_two_owners(self) -> None:
        if not hasattr(self, "storage"):
            return
        held = [(self.tier(block), self.slot(block)) for block in self.written]
        held += [(job.target, slot) for job, _ in self.jobs for slot in job.target_slots.tolist()]
        assert len(set(held)) == len(held)
        for tier, free in zip(Tier, self.storage.free, strict=True):
            taken = {slot for place, slot in held if place is tier}
            assert free.taken == len(taken)
            # Clean copies are free slots, so what is left is all that nobody holds.
            assert {slot for slot in range(free.count) if slot in free} == set(range(free.count)) - taken
            assert len(free) == free.count - free.taken
        copies = self.storage.copies.copies()
        assert len(set(copies.values())) == len(copies)
        assert all(slot in self.storage.copies for slot in copies.values())

    @invariant()
    def a_clean_copy_equals_its_block(self) -> None:
        if not hasattr(self, "storage"):
            return
        row = np.asarray([self.storage.memory.hbm])
        for block, slot in self.storage.copies.copies().items():
            assert block in self.clean and self.tier(block) is not Tier.nvme
            failures = self.storage.stage((np.asarray([Tier.nvme], dtype=np.int8), np.asarray([slot])), row)
            assert bool(failures) == (slot in self.damaged)
            home = self.storage.memory.home
            content = home.keys_SGBD[row[0]].clone(), home.values_SGBD[row[0]].clone()
            assert failures or equal(content, self.written[block])


TestStorage = StorageMachine.TestCase
TestStorage.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_an_unchanged_block_goes_back_to_nvme_without_a_write(tmp_path: Path) -> None:
    storage = storage_of(tmp_path)
    assert storage.store is not None
    block = storage.add(Tier.hbm, 0, 0, 0, -1, False)
    storage.write(block, 0, *tokens(1))
    move(storage, block, Tier.nvme)
    slot, written = int(storage.pool.slot[block]), storage.store.written_bytes
    for path in ([Tier.dram], [Tier.hbm], [Tier.dram, Tier.hbm], [Tier.hbm, Tier.dram]):
        for tier in path:
            move(storage, block, tier)
        moved = storage.moved_bytes
        move(storage, block, Tier.nvme)
        assert (int(storage.pool.slot[block]), storage.moved_bytes) == (slot, moved)
        assert equal(read(storage, block), tokens(1))
    assert storage.store.written_bytes == written
    # A write makes the copy worthless.
    move(storage, block, Tier.hbm)
    storage.write(block, 1, *tokens(2, 1))
    changed = read(storage, block)
    assert not isinstance(changed, str)
    move(storage, block, Tier.nvme)
    assert storage.store.written_bytes == 2 * written
    assert equal(read(storage, block), changed)


def test_clean_copies_never_take_room_from_blocks(tmp_path: Path) -> None:
    """All slots of the file hold clean copies; as many other blocks still find room in it."""
    storage = storage_of(tmp_path, slots=Slots(8, 8, 8))
    first = [storage.add(Tier.hbm, 0, 0, 0, -1, False) for _ in range(8)]
    for block in first:
        storage.write(block, 0, *tokens(block))
        move(storage, block, Tier.nvme)
    for block in first:
        move(storage, block, Tier.dram)
    assert set(storage.copies.copies()) == set(first)
    second = [storage.add(Tier.hbm, 0, 0, 0, -1, False) for _ in range(8)]
    for count, block in enumerate(second, start=1):
        storage.write(block, 0, *tokens(block))
        move(storage, block, Tier.nvme)
        assert list(storage.copies.copies()) == first[count:], "the one kept longest is given up first"
    assert storage.begin(first, Tier.nvme) is None
    assert all(equal(read(storage, block), tokens(block)) for block in first + second)


def test_a_damaged_clean_copy_is_lost_when_it_is_read(tmp_path: Path) -> None:
    storage = storage_of(tmp_path)
    block = storage.add(Tier.hbm, 0, 0, 0, -1, False)
    storage.write(block, 0, *tokens(1))
    for tier in (Tier.nvme, Tier.dram):
        move(storage, block, tier)
    damage(storage, storage.copies.copies()[block])
    assert equal(read(storage, block), tokens(1))
    assert move(storage, block, Tier.nvme) == []
    assert read(storage, block) == "checksum"
    assert move(storage, block, Tier.hbm) == [block]
    storage.pool.lost[block] = True
    storage.remove(block)
    assert len(storage.free[Tier.nvme]) == SLOTS.nvme - 1


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_packed_blocks_lose_bits_once(tmp_path: Path, bits: int) -> None:
    """A packed block comes back as its codes say, from dram, from nvme and in hbm."""
    storage = storage_of(tmp_path, bits)
    block = storage.add(Tier.hbm, 0, 0, 0, -1, False)
    exact = tokens(3)
    storage.write(block, 0, *exact)
    keys, values = (
        unpack(pack(half[None], bits, axis), half.dtype)[0]
        for half, axis in zip(exact, (Axis.channel, Axis.token), strict=True)
    )
    assert equal(read(storage, block), exact)
    assert not torch.equal(keys, exact[0])
    for tier in (Tier.dram, Tier.nvme, Tier.dram, Tier.hbm):
        assert move(storage, block, tier) == []
        assert equal(read(storage, block), (keys, values))
    # Back to the clean copy in nvme: nothing is rounded again.
    for tier in (Tier.nvme, Tier.hbm):
        assert move(storage, block, tier) == []
        assert equal(read(storage, block), (keys, values))
    # Without the copy the way down computes the scales again, from rounded values: content changes by rounding alone.
    storage.copies.forget(block)
    for tier in (Tier.nvme, Tier.hbm):
        assert move(storage, block, tier) == []
        found = read(storage, block)
        assert not isinstance(found, str)
        torch.testing.assert_close(found, (keys, values), rtol=0, atol=1e-6)


def test_a_slot_that_could_not_be_written_is_not_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = storage_of(tmp_path)
    block = storage.add(Tier.hbm, 0, 0, 0, -1, False)
    storage.write(block, 0, *tokens(1))
    write = os.pwritev

    def fails(*args: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("paceline.tiers.store_file.os.pwritev", fails)
    assert move(storage, block, Tier.nvme) == [block]
    monkeypatch.setattr("paceline.tiers.store_file.os.pwritev", write)
    assert equal(read(storage, block), tokens(1))
    assert storage.failures == {"write": 1}
    assert len(storage.free[Tier.nvme]) == SLOTS.nvme - 1
    assert move(storage, block, Tier.nvme) == []
    assert equal(read(storage, block), tokens(1))
    assert len(storage.free[Tier.nvme]) == SLOTS.nvme - 2


def test_a_lost_block_takes_its_slot_with_it(tmp_path: Path) -> None:
    storage = storage_of(tmp_path)
    block = storage.add(Tier.dram, 0, 0, 0, -1, False)
    move(storage, block, Tier.nvme)
    storage.pool.lost[block] = True
    storage.remove(block)
    assert len(storage.free[Tier.nvme]) == SLOTS.nvme - 1
    assert storage.free[Tier.nvme].taken == 0


def test_dram_grows_around_what_lies_in_it(tmp_path: Path) -> None:
    storage = storage_of(tmp_path)
    blocks = [storage.add(Tier.dram, 0, 0, 0, -1, False) for _ in range(SLOTS.dram)]
    for block in blocks:
        storage.write(block, 0, *tokens(block))
    assert not len(storage.free[Tier.dram])
    storage.grow_dram(2)
    blocks += [storage.add(Tier.dram, 0, 0, 0, -1, False) for _ in range(2)]
    for block in blocks[-2:]:
        storage.write(block, 0, *tokens(block))
    assert all(equal(read(storage, block), tokens(block)) for block in blocks)


def test_without_a_store_nothing_goes_to_nvme() -> None:
    storage = Storage(LAYOUT, Slots(2, 2, 1), 0, CPU, None)
    block = storage.add(Tier.hbm, 0, 0, 0, -1, False)
    job = storage.begin([block], Tier.nvme)
    assert job is not None
    with pytest.raises(TierFull, match="there is no nvme tier"):
        storage.run(job)


def test_who_leaves_hbm_is_told_before_it_does(tmp_path: Path) -> None:
    storage = storage_of(tmp_path)
    block = storage.add(Tier.hbm, 0, 0, 0, -1, False)
    seen: list[tuple[list[int], Tier]] = []
    storage.leaving = lambda blocks: seen.append((blocks.tolist(), Tier(int(storage.pool.tier[blocks[0]]))))
    for tier in (Tier.dram, Tier.nvme, Tier.hbm, Tier.nvme):
        move(storage, block, tier)
    assert seen == [([block], Tier.hbm)] * 2


@pytest.mark.parametrize("target", [Tier.dram, Tier.nvme])
def test_a_write_after_the_copy_and_before_its_end_is_kept(target: Tier, tmp_path: Path) -> None:
    storage = storage_of(tmp_path)
    block = storage.add(Tier.hbm, 0, 0, 0, -1, False)
    storage.write(block, 0, *tokens(1))
    job = storage.begin([block], target)
    assert job is not None
    storage.run(job)
    storage.write(block, 0, *tokens(2))
    assert storage.finish(job) == []
    assert storage.pool.tier[block] == Tier.hbm and not storage.pool.moving[block]
    assert equal(read(storage, block), tokens(2))
    assert len(storage.free[target]) == storage.free[target].count
