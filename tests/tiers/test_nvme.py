from __future__ import annotations

import fcntl
import mmap
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.tiers import store_file
from paceline.tiers.checksum import crc32c
from paceline.tiers.errors import StoreError
from paceline.tiers.layout import Layout
from paceline.tiers.nvme import Parts, Store
from paceline.tiers.store_file import PAGE, StoreFile, fingerprint, read_header, write_header

LAYOUT = Layout(layers=2, heads=2, block_size=4, head_dim=8)
MINE = fingerprint(LAYOUT, "model a", rank=1, world=2)


def payload(seed: int, nbytes: int = 1000) -> Parts:
    made = np.random.Generator(np.random.Philox(seed)).integers(0, 256, nbytes, dtype=np.uint8)
    return made[: nbytes // 2], made[nbytes // 2 :]


def empty(nbytes: int = 1000) -> Parts:
    return np.zeros(nbytes // 2, dtype=np.uint8), np.zeros(nbytes - nbytes // 2, dtype=np.uint8)


def test_crc_is_castagnolis() -> None:
    # RFC 3720, appendix B.4.
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(np.full(32, 0xFF, dtype=np.uint8)) == 0x62A8AB43
    assert crc32c(b"1234", b"56789") == crc32c(b"123456789")


@pytest.mark.parametrize("nbytes", [1000, 4096, 70_000, 1_500_000])
def test_slots_come_back_in_any_order(tmp_path: Path, nbytes: int) -> None:
    store = Store(tmp_path, MINE, nbytes, 12, threads=3)
    slots = np.asarray([3, 4, 5, 11, 0, 8, 7])
    assert store.write(slots, [payload(slot, nbytes) for slot in slots.tolist()]) == {}
    wanted = slots[::-1].copy()
    targets = [empty(nbytes) for _ in wanted]
    assert store.read(wanted, targets) == {}
    for slot, target in zip(wanted.tolist(), targets, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(target, payload(slot, nbytes), strict=True))
    # The last write of a slot counts.
    assert store.write(slots[:1], [payload(99, nbytes)]) == {}
    assert store.read(slots[:1], targets[:1]) == {}
    assert np.array_equal(targets[0][0], payload(99, nbytes)[0])
    store.close()
    assert list(tmp_path.iterdir()) == []


@given(slots=st.lists(st.integers(0, 40), unique=True, max_size=30), group=st.integers(1, 5))
def test_groups_are_neighbours_and_each_slot_is_in_one(slots: list[int], group: int) -> None:
    store = Store.__new__(Store)
    store._group = group
    groups = store._groups(np.asarray(slots, dtype=np.int64))
    assert sorted(index for found in groups for index in found) == list(range(len(slots)))
    for found in groups:
        assert len(found) <= group
        assert [slots[index] for index in found] == list(range(slots[found[0]], slots[found[0]] + len(found)))


def test_the_file_is_taken_at_once_and_says_whose_it_is(tmp_path: Path) -> None:
    store = Store(tmp_path, MINE, 5000, 10)
    assert store.stride == 2 * PAGE
    assert os.stat(store.open_path).st_blocks * 512 >= PAGE + 10 * store.stride
    assert store.open_path.stat().st_mode & 0o777 == 0o600
    descriptor = os.open(store.open_path, os.O_RDONLY)
    assert read_header(descriptor, store.open_path) == (MINE, store.stride, 10)
    os.close(descriptor)
    store.close()


def test_nothing_is_left_however_a_process_ends(tmp_path: Path) -> None:
    first, second = (StoreFile.make(tmp_path, MINE, PAGE, 4, 0) for _ in range(2))
    assert list(tmp_path.iterdir()) == []
    with mmap.mmap(-1, PAGE) as page:  # aligned, as O_DIRECT wants it
        for file, letter in ((first, b"a"), (second, b"b")):
            page[:] = letter * PAGE
            file.write(2, memoryview(page))
        for file, letter in ((first, b"a"), (second, b"b")):
            file.read(2, memoryview(page))
            assert page[:] == letter * PAGE
            file.close()
            file.close()


def test_what_other_versions_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    def old(name: str) -> int:
        """A file that keeps its name, as earlier versions made it."""
        descriptor = os.open(tmp_path / name, os.O_RDWR | os.O_CREAT, 0o600)
        write_header(descriptor, MINE, PAGE, 1)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return descriptor

    os.close(old("kv-0123-rank0-0.store"))
    used = old("kv-0123-rank0-1.store")
    (tmp_path / "kv-mine.store").write_text("of somebody else")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "kv-link.store").symlink_to(tmp_path / "notes.txt")
    StoreFile.make(tmp_path, MINE, PAGE, 1, 0).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "kv-0123-rank0-1.store", "kv-link.store", "kv-mine.store", "notes.txt"
    ]  # fmt: skip
    os.close(used)


@pytest.mark.parametrize(
    ("at", "message"),
    [(0, "is no file of KV blocks"), (20, "is damaged"), (13, "is damaged")],
)
def test_a_strange_or_damaged_header_is_refused(tmp_path: Path, at: int, message: str) -> None:
    file = StoreFile.make(tmp_path, MINE, PAGE, 1, 0)
    content = bytearray(file.open_path.read_bytes())
    file.close()
    content[at] ^= 1
    (tmp_path / "header").write_bytes(content)
    with (tmp_path / "header").open("rb") as damaged, pytest.raises(StoreError, match=message):
        read_header(damaged.fileno(), tmp_path / "header")


def test_the_watermark_stays_free(tmp_path: Path) -> None:
    system = os.statvfs(tmp_path)
    file = StoreFile.make(tmp_path, MINE, PAGE, 8, watermark=2 * system.f_bavail * system.f_frsize)
    assert file.slots == 0
    file.close()


def test_a_folder_that_can_not_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="name a folder that can be written"):
        StoreFile.make(tmp_path / "file" / "folder", MINE, PAGE, 8, 0)


def test_a_late_read_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that was given up comes back while another one of the same size is under way."""
    store = Store(tmp_path, MINE, 1000, 8, deadline_s=0.1, threads=1)
    slots = np.asarray([0, 5])
    assert store.write(slots, [payload(slot) for slot in slots.tolist()]) == {}
    go, back = threading.Event(), threading.Event()
    calls: list[int] = []
    read = os.preadv

    def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        calls.append(offset)
        if len(calls) == 1:
            go.wait(30)
            count = read(descriptor, buffers, offset)
            back.set()
            return count
        count = read(descriptor, buffers, offset)
        go.set()
        assert back.wait(30)
        return count

    monkeypatch.setattr(store_file.os, "preadv", preadv)
    first, second = empty(), empty()
    assert store.read(slots[:1], [first])[0].kind == "timeout"
    assert store._threads.hung == 1
    store._threads.deadline_s = 10
    assert store.read(slots[1:], [second]) == {}
    assert np.array_equal(second[0], payload(5)[0])
    # What nobody waited for was given to nobody.
    assert not first[0].any()
    for _ in range(100):
        if not store._threads.hung:
            break
        time.sleep(0.01)
    assert store._threads.hung == 0
    store.close()


@pytest.mark.exclusive
def test_a_disk_that_always_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path, MINE, 1000, 8, deadline_s=0.02, threads=1)
    slot = np.asarray([0])
    assert store.write(slot, [payload(0)]) == {}
    go = threading.Event()
    read = os.preadv

    def preadv(*args: Any) -> int:
        go.wait(30)
        return read(*args)

    monkeypatch.setattr(store_file.os, "preadv", preadv)
    try:
        for _ in range(9):
            assert "has not come back in" in store.read(slot, [empty()])[0].cause
        began = time.monotonic()
        for _ in range(50):
            assert "it is given up" in store.read(slot, [empty()])[0].cause
        assert time.monotonic() - began < 0.5
        # It is asked again when what hung has come back.
        go.set()
        for _ in range(100):
            if not store.read(slot, [empty()]):
                break
            time.sleep(0.01)
        assert store.read(slot, [empty()]) == {}
    finally:
        go.set()
        store.close()
