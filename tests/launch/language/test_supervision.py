"""A worker that the run can do without, in the eyes of the supervisor."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from paceline.launch.errors import Interrupts, RunFailedError
from paceline.launch.process import WorkerCommand
from paceline.launch.run_dir import RunDir
from paceline.launch.supervise import Supervisor
from tests.launch.stand_ins import commands

pytestmark = pytest.mark.exclusive


@pytest.fixture
def run_dir() -> Iterator[RunDir]:
    with RunDir() as folder:
        yield folder


DONE = "(paths.path / 'done').touch()"


def supervise(run_dir: RunDir, made: list[WorkerCommand], hang_timeout_s: float = 30.0) -> None:
    with Interrupts() as interrupts:
        Supervisor(made, run_dir, interrupts, hang_timeout_s).run()


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "raise ValueError('no')"])
def test_it_may_fail_once_it_has_joined(end: str, run_dir: RunDir) -> None:
    made = commands(run_dir, [end, f"[(time.sleep(0.02), progress(n)) for n in range(25)]\n{DONE}"])
    supervise(run_dir, [replace(made[0], expendable=True), made[1]])
    # The other worker was not stopped: it came to its end. Where nothing is expendable, the same failure ends the run.
    assert (run_dir.path / "done").exists()
    with pytest.raises(RunFailedError, match="worker rank 0"):
        supervise(run_dir, made)


def test_it_may_hang_and_is_ended(run_dir: RunDir) -> None:
    made = commands(run_dir, ["time.sleep(100)", f"[(time.sleep(0.02), progress(n)) for n in range(40)]\n{DONE}"])
    begin = time.monotonic()
    supervise(run_dir, [replace(made[0], expendable=True), made[1]], hang_timeout_s=0.3)
    assert time.monotonic() - begin < 20
    assert (run_dir.path / "done").exists()


def test_others_wait_for_it_to_join_so_its_failure_before_that_ends_the_run(run_dir: RunDir) -> None:
    made = commands(run_dir, ["", "wait()"])
    early = WorkerCommand(0, "worker rank 0 (drafter)", [sys.executable, "-c", "raise SystemExit(3)"], expendable=True)
    with pytest.raises(RunFailedError, match=r"worker rank 0 \(drafter\) ended with exit code 3"):
        supervise(run_dir, [early, made[1]])


def test_it_is_not_blamed_for_what_comes_later(run_dir: RunDir) -> None:
    killed = "os.kill(os.getpid(), signal.SIGKILL)"
    made = commands(run_dir, [killed, f"time.sleep(1.0); {killed}"])
    with pytest.raises(RunFailedError, match="worker rank 1 was killed by SIGKILL"):
        supervise(run_dir, [replace(made[0], expendable=True), made[1]])


def test_one_that_is_stopped_before_it_has_joined_is_named_at_once(run_dir: RunDir) -> None:
    """It has as long as any worker that hangs, and not as long as one that loads weights."""
    stop = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"
    made = commands(run_dir, ["", "wait()"])
    early = WorkerCommand(0, "worker rank 0 (drafter)", [sys.executable, "-c", stop], expendable=True)
    with pytest.raises(RunFailedError, match=r"worker rank 0 \(drafter\) hangs: .* \(the process is stopped"):
        supervise(run_dir, [early, made[1]], hang_timeout_s=1.0)
