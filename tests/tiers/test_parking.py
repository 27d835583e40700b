from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from paceline.tiers.checksum import crc32c
from paceline.tiers.errors import StoreError, TierFull
from paceline.tiers.layout import Layout
from paceline.tiers.manager import TierManager
from paceline.tiers.parking import park, parked_fingerprint, unpark
from tests.faults.tiers import LAYOUT, Session
from tests.tiers.managers import budget_of, manager_of

NOTE = "the tokens: 1, 2, 3 é".encode()


def parked(path: Path, length: int = 21) -> Path:
    """A parked session, of which some blocks were in nvme."""
    with manager_of(8, 2, 100, path / "nvme", LAYOUT) as manager:
        session = Session(manager, 5)
        session.forward(length - 1)
        session.forward(1)
        size = park(session.kv, path / "sleeping", NOTE)
        assert size == (path / "sleeping").stat().st_size
        # It sleeps in the file and goes on here as well.
        session.forward(3)
    return path / "sleeping"


def test_a_session_sleeps_and_goes_on_where_it_was(tmp_path: Path) -> None:
    path = parked(tmp_path)
    with manager_of(6, 0, 100, tmp_path / "nvme", LAYOUT) as manager:
        session = Session(manager, 5)
        session.kv.close()
        session.kv, note = unpark(manager, path)
        assert note == NOTE
        assert session.kv.length == 21
        for layer in range(LAYOUT.layers):
            keys, values = session.kv.read(layer, 0, 21)
            assert torch.equal(keys, session.keys[layer, :, :21])
            assert torch.equal(values, session.values[layer, :, :21])
        session.forward(5)
        session.forward(30)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "nvme", path]
    assert list((tmp_path / "nvme").iterdir()) == []


def test_another_process_takes_it_up(tmp_path: Path) -> None:
    path = parked(tmp_path)
    code = f"""
from pathlib import Path
from paceline.tiers.parking import unpark
from tests.faults.tiers import LAYOUT, Session
from tests.tiers.managers import manager_of
with manager_of(8, 100, layout=LAYOUT) as manager:
    session = Session(manager, 5)
    session.kv.close()
    session.kv, _ = unpark(manager, Path({str(path)!r}))
    session.forward(4)
    print("goes on at", session.kv.length)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "goes on at 25", done.stderr


def test_any_damage_is_found(tmp_path: Path) -> None:
    path = parked(tmp_path)
    content = path.read_bytes()
    with manager_of(64, layout=LAYOUT) as manager:
        for at in (0, 17, 22, 60, len(content) // 5, len(content) // 2, len(content) - 1):
            damaged = bytearray(content)
            damaged[at] ^= 16
            path.write_bytes(damaged)
            with pytest.raises(StoreError, match=r"no parked session|damaged|wrong CRC-32C|too soon"):
                unpark(manager, path)
        for size in (0, 10, 300, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:size])
            with pytest.raises(StoreError, match=r"too soon"):
                unpark(manager, path)
        assert len(manager.pool) == 0
        path.write_bytes(content)
        unpark(manager, path)[0].close()


def test_another_model_or_rank_can_not_take_it_up(tmp_path: Path) -> None:
    path = parked(tmp_path)
    for manager, what in (
        (TierManager(LAYOUT, budget_of(64), model="other"), "model , not other"),
        (TierManager(LAYOUT, budget_of(64), rank=1), "rank 0, not 1"),
        (TierManager(Layout(2, 2, 4, 16), budget_of(99)), "head_dim 8, not 16"),
    ):
        with pytest.raises(StoreError, match=what):
            unpark(manager, path)
        manager.close_all()


def test_no_room_leaves_nothing(tmp_path: Path) -> None:
    path = parked(tmp_path)
    with manager_of(6, layout=LAYOUT) as manager:
        with pytest.raises(TierFull):
            unpark(manager, path)
        assert len(manager.pool) == 0


def test_a_disk_without_room_keeps_the_session(tmp_path: Path) -> None:
    system = os.statvfs(tmp_path)
    with manager_of(64, layout=LAYOUT, watermark=2 * system.f_bavail * system.f_frsize) as manager:
        session = Session(manager, 5)
        session.forward(9)
        with pytest.raises(StoreError, match="less than the watermark"):
            park(session.kv, tmp_path / "sleeping")
        with pytest.raises(StoreError, match="failed"):
            park(session.kv, Path("/dev/full/sleeping"))
        session.forward(1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("blocks", [2**20, 2**50, 2**62, -1])
def test_a_header_that_asks_for_more_than_there_is(blocks: int, tmp_path: Path) -> None:
    path = parked(tmp_path)
    content = path.read_bytes()
    begin = len(b"PACELINE-PARKED\x00") + 8
    size = int.from_bytes(content[begin - 8 : begin - 4], "little")
    header = json.loads(content[begin : begin + size])
    body = json.dumps(header | {"blocks": blocks}).encode()
    path.write_bytes(
        content[: begin - 8] + len(body).to_bytes(4, "little") + crc32c(body).to_bytes(4, "little") + body
        + content[begin + size :]
    )  # fmt: skip
    with manager_of(64, layout=LAYOUT) as manager, pytest.raises(StoreError, match="too soon"):
        unpark(manager, path)


def test_a_pipe_is_no_parked_session(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreError, match="is no file"):
        parked_fingerprint(tmp_path / "pipe")
