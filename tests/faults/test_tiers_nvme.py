"""What becomes of sessions when the nvme tier breaks: they go on, compute again, or fail by name."""

from __future__ import annotations

import errno
import logging
import os
import resource
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from paceline.tiers import store_file
from paceline.tiers.errors import BlockLost, TierFull
from paceline.tiers.manager import TierManager
from paceline.tiers.settings import Tier
from tests.faults.tiers import LAYOUT, Session, corrupt
from tests.tiers.managers import manager_of

HBM = 8


def pair(manager: TierManager) -> tuple[Session, Session]:
    """Two sessions, of which the first has most of its blocks in nvme."""
    first, second = Session(manager, 1), Session(manager, 2)
    first.forward(40)
    second.forward(10)
    manager.mover.drain()
    assert len(first.blocks(Tier.nvme)) > 10
    return first, second


def recompute(session: Session, length: int) -> None:
    """What a decoder does with a lost block: truncate to where it was lost, and compute from there."""
    for _ in range(50):
        try:
            session.forward(length - session.kv.length)
            return
        except BlockLost as lost:
            session.kv.length = min(session.kv.length, lost.start)
    raise AssertionError("it is lost again and again")


def test_a_flipped_bit_never_reaches_attention(tmp_path: Path) -> None:
    with manager_of(HBM, 0, 100, tmp_path, LAYOUT) as manager:
        first, second = pair(manager)
        victim = first.blocks(Tier.nvme)[3]
        start = int(manager.pool.start[victim])
        corrupt(manager, victim)
        with pytest.raises(
            BlockLost,
            match=rf"KV block {victim} \(session 0, layer \d, positions from {start} on\) is "
            r"lost: slot \d+ of .* has a wrong CRC-32C; truncate the session to",
        ):
            first.forward(1)
        second.forward(3)
        first.kv.length = start
        recompute(first, 45)
        first.forward(1)
        second.forward(1)
        assert manager.statistics()["errors"]["checksum"] >= 1  # type: ignore[index]


def test_a_damaged_block_is_not_written_to(tmp_path: Path) -> None:
    with manager_of(HBM, 0, 100, tmp_path, LAYOUT, asynchronous=False) as manager:
        first, _ = pair(manager)
        victim = first.blocks(Tier.nvme)[0]
        corrupt(manager, victim)
        token = torch.zeros(2, 1, LAYOUT.head_dim)
        with pytest.raises(BlockLost, match=rf"KV block {victim} .* has a wrong CRC-32C"):
            manager.write(victim, 1, token, token)
        assert manager.where([victim])[0].tolist() == [Tier.nvme]


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    with manager_of(HBM, 0, 100, tmp_path, LAYOUT, asynchronous=False) as manager:
        first, _ = pair(manager)
        for block in first.blocks(Tier.nvme):
            corrupt(manager, block)
            with pytest.raises(BlockLost, match="CRC-32C"):
                manager.fetch([block])


def test_a_truncated_file(tmp_path: Path) -> None:
    with manager_of(HBM, 0, 100, tmp_path, LAYOUT) as manager:
        first, second = pair(manager)
        store = manager.storage.store
        assert store is not None
        os.truncate(store.open_path, 4096 + 2 * store.stride)
        with pytest.raises(BlockLost, match=r"ends at \d+ bytes; it was cut after it was made"):
            first.forward(1)
        first.kv.length = 0
        recompute(first, 20)
        recompute(second, 12)


def test_a_write_error_leaves_blocks_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*args: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with manager_of(HBM, 4, 100, tmp_path, LAYOUT) as manager:
        first, second = pair_in_memory(manager)
        monkeypatch.setattr(store_file.os, "pwritev", fails)
        with caplog.at_level(logging.WARNING):
            first.forward(40)
            second.forward(40)
        assert "nothing is written to" in caplog.text
        assert "dram takes" in caplog.text
        assert first.blocks(Tier.nvme) == []
        assert manager.statistics()["errors"]["write"] >= 1  # type: ignore[index]


def pair_in_memory(manager: TierManager) -> tuple[Session, Session]:
    """Two sessions that nvme has nothing of yet."""
    first, second = Session(manager, 1), Session(manager, 2)
    first.forward(3)
    second.forward(3)
    return first, second


def test_a_full_disk_while_running(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with manager_of(HBM, 2, 60, tmp_path, LAYOUT) as manager:
        first, second = pair_in_memory(manager)
        store = manager.storage.store
        assert store is not None
        true = store._file._descriptor
        # /dev/full takes no byte, as a disk without room.
        store._file._descriptor = os.open("/dev/full", os.O_RDWR)
        try:
            with caplog.at_level(logging.WARNING):
                first.forward(60)
                second.forward(40)
                first.forward(1)
            assert "No space left on device" in caplog.text
            assert store.full
            # Beyond what nvme was to take as well, nothing is promised.
            with pytest.raises(TierFull):
                second.forward(100)
            first.forward(1)
        finally:
            os.close(store._file._descriptor)
            store._file._descriptor = true


def test_a_file_size_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with manager_of(HBM, 0, 100, tmp_path, LAYOUT) as manager:
        first, second = pair_in_memory(manager)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096 + 3 * 4096, limits[1]))
        try:
            with caplog.at_level(logging.WARNING):
                first.forward(60)
                second.forward(10)
                first.forward(1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert manager.statistics()["errors"]["full"] >= 1  # type: ignore[index]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("a tmpfs can't be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_too_small_from_the_beginning(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), manager_of(HBM, 4, 100, small_disk, LAYOUT) as manager:
        assert "has room for" in caplog.text
        assert manager.storage.store is not None
        assert 20 < manager.storage.store.slots < 32
        first, second = Session(manager, 1), Session(manager, 2)
        first.forward(60)
        second.forward(60)
        first.forward(20)
        assert first.blocks(Tier.nvme)


def test_a_disk_that_fills_up_while_running(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    with manager_of(HBM, 4, 20, small_disk, LAYOUT) as manager:
        store = manager.storage.store
        assert store is not None
        # What a file system without reservation would have given: a file with holes, and no room to fill them.
        size = store.open_path.stat().st_size
        os.truncate(store.open_path, 4096)
        os.truncate(store.open_path, size)
        with (small_disk / "other").open("wb", buffering=0) as other, pytest.raises(OSError, match="No space"):
            while True:
                other.write(bytes(4096))
        with caplog.at_level(logging.WARNING):
            first = Session(manager, 1)
            first.forward(50)
            first.forward(1)
        assert "No space left on device" in caplog.text


class Hanging:
    """A disk whose reads of some slots don't come back until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.hangs = False
        self.held = 0

    def preadv(self, *args: Any) -> int:
        if self.hangs:
            self.held += 1
            self.go.wait(30)
        return os_preadv(*args)


os_preadv = os.preadv


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    disk = Hanging()
    monkeypatch.setattr(store_file.os, "preadv", disk.preadv)
    yield disk
    disk.go.set()


@pytest.mark.exclusive
def test_a_read_that_never_returns(tmp_path: Path, hanging: Hanging) -> None:
    with manager_of(HBM, 0, 100, tmp_path, LAYOUT, deadline_s=0.2, threads=2) as manager:
        first, second = pair(manager)
        near = Session(manager, 3)
        near.forward(2)
        hanging.hangs = True
        start = time.monotonic()
        with pytest.raises(BlockLost, match=r"a read of .* has not come back in 0.2 s"):
            first.forward(1)
        assert time.monotonic() - start < 3
        hanging.hangs = False
        assert hanging.held >= 1
        # Others get another thread, and what was lost is computed again.
        second.forward(1)
        near.forward(1)
        first.kv.length = 0
        recompute(first, 40)
        assert manager.statistics()["errors"]["timeout"] >= 1  # type: ignore[index]


def test_what_comes_back_too_late_is_written_nowhere(tmp_path: Path, hanging: Hanging) -> None:
    with manager_of(HBM, 0, 100, tmp_path, LAYOUT, deadline_s=0.1, threads=1, asynchronous=False) as manager:
        first, _ = pair(manager)
        hanging.hangs = True
        with pytest.raises(BlockLost):
            first.forward(1)
        hanging.hangs = False
        first.kv.length = 0
        recompute(first, 24)
        hanging.go.set()
        time.sleep(0.05)
        recompute(first, 30)
        for layer in range(LAYOUT.layers):
            keys, values = first.kv.read(layer, 0, 30)
            assert keys.equal(first.keys[layer, :, :30])
            assert values.equal(first.values[layer, :, :30])
