from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from paceline.tiers import store_file
from paceline.tiers.errors import BlockLost, TierError, TierFull
from paceline.tiers.layout import Budget, Layout
from paceline.tiers.manager import TierManager
from paceline.tiers.mover import Mover
from paceline.tiers.planner import Move
from paceline.tiers.settings import Tier
from tests.tiers.managers import LAYOUT, manager_of


def content(seed: int) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, LAYOUT.heads, LAYOUT.block_size, LAYOUT.head_dim, generator=made)
    return keys, values


def filled(manager: TierManager, seeds: range, session: int = 0) -> list[int]:
    """A block for each seed, filled from it."""
    blocks = []
    for seed in seeds:
        block = manager.allocate(session, seed % LAYOUT.layers, 4 * seed)
        manager.write(block, 0, *content(seed))
        blocks.append(block)
    return blocks


def holds(manager: TierManager, block: int, seed: int) -> bool:
    keys, values = manager.fetch([block])
    return torch.equal(keys[0], content(seed)[0]) and torch.equal(values[0], content(seed)[1])


def test_budgets_below_two_blocks_a_layer_are_refused_before_anything_starts() -> None:
    with pytest.raises(TierError, match=r"hbm of 2047 bytes holds 3 blocks of 512 bytes, but 2 for each of 2 layers"):
        TierManager(LAYOUT, Budget(2047))
    with pytest.raises(ValueError, match="no path"):
        Budget(4096, nvme=1)
    assert Budget(4096, 1024, 10_000, Path("x")).slots(LAYOUT) == Budget(4100, 1100, 8192, Path("x")).slots(LAYOUT)
    assert Layout(2, 2, 4, 8, torch.bfloat16).block_nbytes * 2 == LAYOUT.block_nbytes == 2 * 4 * 2 * 4 * 8
    with pytest.raises(ValueError, match="heads is 0"):
        Layout(2, 0, 4, 8)


def test_a_new_block_is_zeros_whoever_had_its_memory() -> None:
    with manager_of(4) as manager:
        manager.release(filled(manager, range(4)))
        keys, values = manager.fetch([manager.allocate(0, 0, 0) for _ in range(4)])
        assert not keys.any()
        assert not values.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_types_go_through_all_tiers(dtype: torch.dtype, tmp_path: Path) -> None:
    layout = Layout(1, 2, 4, 8, dtype)
    made = torch.Generator().manual_seed(0)
    data = torch.randn(12, 2, 2, 4, 8, generator=made).to(dtype)
    with manager_of(4, 3, 20, tmp_path, layout) as manager:
        blocks = []
        for pair in data:
            blocks.append(manager.allocate(0, 0, 0))
            manager.write(blocks[-1], 0, pair[0], pair[1])
        assert set(manager.where(blocks)[0].tolist()) == {0, 1, 2}
        keys, values = manager.fetch(blocks)
        assert torch.equal(keys, data[:, 0])
        assert torch.equal(values, data[:, 1])


def test_a_stream_is_a_fetch_in_pieces(tmp_path: Path) -> None:
    with manager_of(4, 0, 50, tmp_path, chunk=4) as manager:
        blocks = filled(manager, range(23))
        pieces = list(manager.stream(blocks[::-1]))
        assert [len(keys) for keys, _ in pieces] == [4, 4, 4, 4, 4, 3]
        keys = torch.cat([keys for keys, _ in pieces])
        assert torch.equal(keys, torch.stack([content(seed)[0] for seed in range(23)][::-1]))
        assert [len(keys) for keys, _ in manager.stream(blocks[:3], 2)] == [2, 1]
        assert manager.fetch([])[0].shape == (0, LAYOUT.heads, LAYOUT.block_size, LAYOUT.head_dim)


def test_where_no_block_can_leave_hbm_a_new_one_goes_into_dram() -> None:
    with manager_of(6, 100) as manager:
        blocks = filled(manager, range(6))
        manager.pool.lost[blocks] = True
        assert manager.where(filled(manager, range(30, 31)))[0].tolist() == [1]
        assert manager.where(blocks)[0].tolist() == [0] * 6


def test_what_is_written_while_it_is_copied_stays_where_it_is() -> None:
    with manager_of(8, 8) as manager:
        (block,) = filled(manager, range(1))
        storage = manager.storage
        job = storage.begin([block], Tier.dram)
        assert job is not None
        storage.run(job)
        manager.write(block, 0, *content(7))
        assert storage.finish(job) == []
        assert manager.where([block])[0].tolist() == [0]
        assert holds(manager, block, 7)
        assert len(storage.free[Tier.dram]) == 8
        assert not manager.pool.moving[block]
        # Undisturbed, it goes.
        job = storage.begin([block], Tier.dram)
        assert job is not None
        storage.run(job)
        storage.finish(job)
        assert manager.where([block])[0].tolist() == [1]
        assert holds(manager, block, 7)
        assert len(storage.free[Tier.hbm]) == 8


def test_what_is_released_while_it_is_copied_does_not_come_back() -> None:
    with manager_of(8, 8) as manager:
        (block,) = filled(manager, range(1))
        storage = manager.storage
        job = storage.begin([block], Tier.dram)
        assert job is not None
        manager.release([block])
        (again,) = filled(manager, range(1, 2))
        assert again == block
        storage.run(job)
        storage.finish(job)
        assert manager.where([again])[0].tolist() == [0]
        assert holds(manager, again, 1)
        assert (len(storage.free[Tier.hbm]), len(storage.free[Tier.dram])) == (7, 8)


def test_moves_are_made_beside_the_compute() -> None:
    """`step` gives back at once while the thread copies, and the tables change only when it is asked."""
    with manager_of(8, 100) as manager:
        blocks = filled(manager, range(4))
        go = threading.Event()
        run = manager.storage.run

        def held(job: Any) -> None:
            go.wait(10)
            run(job)

        manager.storage.run = held  # type: ignore[method-assign]
        manager.mover.start([Move(block, Tier.hbm, Tier.dram) for block in blocks])
        assert manager.mover.moving == 4
        assert manager.where(blocks)[0].tolist() == [0] * 4
        assert all(holds(manager, block, seed) for seed, block in enumerate(blocks))
        go.set()
        manager.mover.drain()
        assert manager.where(blocks)[0].tolist() == [1] * 4
        assert all(holds(manager, block, seed) for seed, block in enumerate(blocks))
        assert manager.storage.moved_bytes == 4 * LAYOUT.block_nbytes


def test_compute_waits_only_where_it_has_to(tmp_path: Path) -> None:
    """With room to spare, demotion comes before pressure: nothing stalls."""
    with manager_of(16, 200, spare=0.25, asynchronous=False) as manager:
        session = manager.open()
        for seed in range(60):
            filled(manager, range(seed, seed + 1), session)
            manager.step()
        assert manager.statistics()["stalls"] == {}
    with manager_of(16, 200, spare=0.0, asynchronous=False) as manager:
        for seed in range(60):
            filled(manager, range(seed, seed + 1))
            manager.step()
        stalls = manager.statistics()["stalls"]
        assert stalls["hbm_full"] > 0  # type: ignore[index]


def test_what_attention_looks_at_comes_up() -> None:
    with manager_of(8, 100, asynchronous=False, refresh=1, bandwidth=4) as manager:
        blocks = np.asarray(filled(manager, range(40)))
        wanted = blocks[:4]
        assert (manager.where(wanted)[0] == Tier.dram).all()
        masses = np.where(np.isin(blocks, wanted), 0.24, 0.04 / 36)
        for _ in range(6):
            manager.record(blocks, masses)
            manager.step()
        assert (manager.where(wanted)[0] == Tier.hbm).all()


def test_prefetch_brings_up_what_fits_and_no_more() -> None:
    with manager_of(8, 100, asynchronous=False) as manager:
        blocks = filled(manager, range(20))
        low = [block for block in blocks if manager.where([block])[0][0] == Tier.dram]
        free = len(manager.storage.free[Tier.hbm])
        manager.prefetch(low)
        assert int((manager.where(low)[0] == Tier.hbm).sum()) == free
        manager.release([block for block in blocks if manager.where([block])[0][0] == Tier.hbm][:3])
        manager.prefetch([block for block in low if manager.pool.live[block]])
        assert len(manager.storage.free[Tier.hbm]) == 0


def test_what_is_on_its_way_up_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads blocks that are being promoted waits for them, and doesn't read the file a second time."""
    with manager_of(8, 0, 60, tmp_path) as manager:
        store = manager.storage.store
        assert store is not None
        blocks = filled(manager, range(20))
        far = [block for block in blocks if manager.pool.tier[block] == Tier.nvme][:4]
        manager.release([block for block in blocks if manager.pool.tier[block] == Tier.hbm])
        read = os.preadv

        def slow(*args: Any) -> int:
            time.sleep(0.1)
            return read(*args)

        monkeypatch.setattr(store_file.os, "preadv", slow)
        manager.prefetch(far)
        assert manager.mover.moving == 4
        assert all(holds(manager, block, blocks.index(block)) for block in far)
        assert store.read_bytes == 4 * store.stride
        found: Any = manager.statistics()
        assert found["hits"] == {"hbm": 4, "dram": 0, "nvme": 0}
        assert (found["staged_bytes"], found["stalls"]["move"]) == (0, 1)


def test_what_was_prefetched_is_not_the_first_to_leave() -> None:
    with manager_of(8, 100, asynchronous=False, policy="slab", spare=0.25) as manager:
        blocks = []
        for seed in range(40):
            blocks += filled(manager, range(seed, seed + 1))
            manager.step()
        soon = blocks[:2]
        assert manager.where(soon)[0].tolist() == [1, 1]
        manager.prefetch(soon)
        assert manager.where(soon)[0].tolist() == [0, 0]
        manager.step()
        # Room was made again, by blocks that were written before.
        assert len(manager.storage.free[Tier.hbm]) == 2
        assert manager.where(soon)[0].tolist() == [0, 0]


def test_hits_sum_to_lookups_and_bytes_to_blocks(tmp_path: Path) -> None:
    with manager_of(6, 5, 50, tmp_path) as manager:
        blocks = filled(manager, range(30))
        manager.fetch(blocks)
        manager.fetch(blocks[:7])
        found: Any = manager.statistics()
        assert found["lookups"] == 37 == sum(found["hits"].values())
        assert sum(found["blocks"].values()) == 30
        assert found["bytes"] == {name: count * LAYOUT.block_nbytes for name, count in found["blocks"].items()}
        assert found["blocks"]["hbm"] <= 6
        assert found["blocks"]["dram"] <= 5


def test_a_lost_block_is_named_and_its_slot_never_used_again(tmp_path: Path) -> None:
    with manager_of(4, 0, 6, tmp_path) as manager:
        blocks = filled(manager, range(8))
        store = manager.storage.store
        assert store is not None
        lost = next(block for block in blocks if manager.where([block])[0][0] == Tier.nvme)
        slot = int(manager.where([lost])[1][0])
        store._sums[slot] ^= 1
        with pytest.raises(BlockLost) as error:
            manager.fetch(blocks)
        assert (error.value.block, error.value.start) == (lost, 4 * blocks.index(lost))
        others = [block for block in blocks if block != lost]
        assert all(holds(manager, block, blocks.index(block)) for block in others)
        manager.release([lost])
        assert slot not in manager.storage.free[Tier.nvme]
        # One block fewer finds room than before.
        filled(manager, range(20, 22))
        with pytest.raises(TierFull):
            filled(manager, range(22, 23))


def test_an_error_in_the_moving_thread_reaches_the_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    with manager_of(8, 100) as manager:
        blocks = filled(manager, range(2))

        def fails(job: Any) -> None:
            raise RuntimeError("a fault of ours")

        monkeypatch.setattr(manager.storage, "run", fails)
        manager.mover.start([Move(blocks[0], Tier.hbm, Tier.dram)])
        with pytest.raises(RuntimeError, match="a fault of ours"):
            manager.mover.drain()


def test_facts_know_how_long_sessions_are_and_what_may_not_move() -> None:
    with manager_of(20) as manager:
        first, second = manager.open(), manager.open()
        blocks = filled(manager, range(3), first) + filled(manager, range(5), second)
        manager.extend(first, 11)
        manager.extend(second, 77)
        manager.close(second)
        manager.pool.open[blocks[4]] = True
        facts = manager.facts()
        assert facts.block.tolist() == sorted(blocks)
        lengths = dict(zip(facts.block.tolist(), facts.length.tolist(), strict=True))
        # The second has ended; its last block begins at 16.
        assert [lengths[block] for block in blocks] == [11] * 3 + [20] * 5
        assert facts.block[facts.pinned].tolist() == blocks[4:5]
        assert facts.start.tolist() == [int(manager.pool.start[block]) for block in facts.block]


def test_a_session_is_opened_once() -> None:
    with manager_of(8) as manager:
        assert [manager.open(), manager.open(5), manager.open()] == [0, 5, 1]
        with pytest.raises(ValueError, match="session 5 is open already"):
            manager.open(5)
        manager.close(5)
        manager.open(5)


def test_writes_beyond_a_block_are_refused() -> None:
    with manager_of(8) as manager:
        (block,) = filled(manager, range(1))
        keys, values = content(0)
        with pytest.raises(ValueError, match="4 tokens from 1 on pass a block of 4"):
            manager.write(block, 1, keys, values)


def test_the_mover_of_nothing_ends() -> None:
    with manager_of(8) as manager:
        before = set(threading.enumerate())
        mover = Mover(manager.storage, lambda tier, most: [], 0)
        (thread,) = set(threading.enumerate()) - before
        mover.take()
        assert mover.moving == 0
        mover.close()
        thread.join(10)
        assert not thread.is_alive()


def test_room_that_blocks_are_on_their_way_to_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of hbm was freed, and what is fetched ahead takes every slot of it: a new block waits, and is not refused."""
    with manager_of(4, 0, 60, tmp_path) as manager:
        first, second = manager.open(), manager.open()
        far = [manager.allocate(first, 0, 4 * number) for number in range(8)]
        near = [manager.allocate(second, 0, 4 * number) for number in range(4)]
        manager.mover.drain()
        read = os.preadv

        def slow(*args: Any) -> int:
            time.sleep(0.2)
            return read(*args)

        monkeypatch.setattr(store_file.os, "preadv", slow)
        manager.release(near)
        manager.prefetch([block for block in far if manager.pool.tier[block] == Tier.nvme])
        assert len(manager.storage.free[Tier.hbm]) == 0 and manager.mover.moving == 4
        assert not (manager.pool.tier[manager.pool.blocks()] == Tier.hbm).any()
        block = manager.allocate(second, 0, 0)
        assert manager.pool.tier[block] == Tier.hbm
