"""The folder of a run: private, and gone afterwards, whatever happens to its owner."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from paceline.launch.errors import ArgumentError
from paceline.launch.run_dir import RunDir
from tests.launch.stand_ins import ROOT

Room = namedtuple("Room", "total used free")

_OWNER = """
import sys, time
from paceline.launch.run_dir import RunDir
with RunDir() as folder:
    (folder.path / "socket").touch()
    print(folder.path, flush=True)
    time.sleep(60)
"""


def test_only_its_user_may_enter_and_it_is_removed() -> None:
    with RunDir() as folder:
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
        folder.log(0).write_text("x")
    assert not folder.path.exists()
    assert psutil.Process().children() == []


def test_two_runs_have_two_folders() -> None:
    with RunDir() as one, RunDir() as two:
        assert one.path != two.path


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_it_is_removed_when_its_owner_is_killed(signum: signal.Signals, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _OWNER], stdout=subprocess.PIPE, text=True, cwd=ROOT, env={"TMPDIR": str(tmp_path)}
    ) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        assert (folder / "socket").exists()
        owner.send_signal(signum)
    deadline = time.monotonic() + 2
    while folder.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_long_temporary_folder_leaves_room_for_socket_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with RunDir() as folder:
        assert len(str(folder.path)) < 70


def test_a_full_disk_is_named_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr("tempfile.tempdir", folder)
        monkeypatch.setattr("shutil.disk_usage", lambda path: Room(1 << 30, 1 << 30, 0))
        with pytest.raises(ArgumentError, match=rf"{folder}: the disk has less than 16 MiB left; .* set TMPDIR"):
            RunDir()
        assert list(Path(folder).iterdir()) == []


def test_a_temporary_folder_that_can_not_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # Even root can't write here.
    monkeypatch.setattr("tempfile.tempdir", "/proc/1")
    with pytest.raises(ArgumentError, match=r"/proc/1: .* set TMPDIR"):
        RunDir()
