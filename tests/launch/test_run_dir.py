"""The folder of a run: private, and gone afterwards, whatever happens to its owner."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from paceline.launch.run_dir import RunDir
from tests.launch.stand_ins import ROOT

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
