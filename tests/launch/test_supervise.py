"""The supervisor against stand-in workers: whom it blames, how fast it ends, and that nothing is left."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from paceline.launch.errors import Interrupted, Interrupts, RunFailedError, raise_on_sigterm
from paceline.launch.run_dir import ProgressRow, RunDir
from paceline.launch.supervise import Supervisor
from tests.launch.stand_ins import commands, supervise
from tests.launch.test_run_dir import Room

pytestmark = pytest.mark.exclusive


@pytest.fixture
def run_dir() -> Iterator[RunDir]:
    with RunDir() as folder:
        yield folder


def failure_of(run_dir: RunDir, *programs: str, hang_timeout_s: float = 30.0) -> RunFailedError:
    """The error of a run, which leaves none of its processes."""
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(RunFailedError) as caught:
        supervise(run_dir, programs, hang_timeout_s)
    left = [p for p in psutil.Process().children(recursive=True) if p not in before]
    assert left == []
    return caught.value


def test_sigterm_raises_where_files_are_written() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught, raise_on_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_all_end_well(run_dir: RunDir) -> None:
    seen: list[list[int]] = []

    def watch(rows: object) -> None:
        assert isinstance(rows, list)
        seen.append([row.count for row in rows if isinstance(row, ProgressRow)])

    with Interrupts() as interrupts:
        programs = ["for n in range(5): progress(n); time.sleep(0.05)", "progress(7)"]
        Supervisor(commands(run_dir, programs), run_dir, interrupts, watch=watch).run()
    assert seen[-1] == [4, 7]


def test_a_worker_that_is_stopped_before_it_meets_the_others_is_blamed(run_dir: RunDir) -> None:
    """The other one gives up waiting for it, and is healthy."""
    stop = "os.kill(os.getpid(), signal.SIGSTOP); time.sleep(60)"
    gave_up = "time.sleep(0.5); fail(RendezvousError('rank 0 of 2 waited 30 s for start; missing: rank 1', [1]))"
    error = str(failure_of(run_dir, gave_up, stop))
    assert error == (
        "worker rank 1 does not answer: the process is stopped, as by SIGSTOP; worker rank 0 gave up on it"
    )


def test_a_worker_that_could_not_say_why_on_a_full_disk(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "full" not in str(failure_of(run_dir, "sys.exit(3)"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: Room(1 << 30, 1 << 30, 0))
    error = failure_of(run_dir, "sys.exit(3)")
    assert f"did not say why; the disk of the run's folder {run_dir.path} is full: make room" in str(error)


def test_a_stage_that_failed_is_blamed_and_not_those_who_noticed(run_dir: RunDir) -> None:
    # The peers end first; the cause shows up a little later.
    noticed = "fail(PeerLost(1, 'its process has ended'))"
    cause = "time.sleep(0.25); fail(StageError('step1', 1, 3, 12, ValueError('no such tile')))"
    error = failure_of(run_dir, noticed, cause, noticed)
    assert str(error) == (
        "worker rank 1 failed: stage step1 on rank 1 failed at session 3, frame 12: ValueError: no such tile"
    )


def test_a_lost_peer_is_reported_where_nothing_explains_it(run_dir: RunDir) -> None:
    error = failure_of(run_dir, "fail(PeerLost(1, 'its process has ended'))", "wait()")
    assert "rank 1 is lost" in str(error)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT"])
def test_a_signal_is_named(run_dir: RunDir, name: str) -> None:
    error = failure_of(run_dir, "wait()", f"os.kill(os.getpid(), signal.{name})")
    assert str(error).startswith(f"worker rank 1 was killed by {name}")


def test_a_silent_exit_shows_the_end_of_the_log(run_dir: RunDir) -> None:
    error = failure_of(run_dir, "wait()", "print('half a thought'); sys.stdout.flush(); os._exit(3)")
    assert str(error) == "worker rank 1 ended with exit code 3 and did not say why"
    assert error.detail.splitlines() == ["end of the log of rank 1:", "half a thought"]


def test_a_silent_worker_hangs_and_one_that_waits_does_not(run_dir: RunDir) -> None:
    error = failure_of(run_dir, "wait()", "time.sleep(60)", hang_timeout_s=1.0)
    assert str(error).startswith("worker rank 1 hangs: no progress for 1 s")


def test_a_stopped_worker_is_blamed_though_another_was_silent_first(run_dir: RunDir) -> None:
    # Rank 0 waits for rank 1 and can't say so; the kernel tells which of the two is stopped.
    stop = "time.sleep(0.4); progress(1); os.kill(os.getpid(), signal.SIGSTOP)"
    error = failure_of(run_dir, "time.sleep(60)", stop, hang_timeout_s=1.0)
    assert str(error).startswith("worker rank 1 hangs: no progress for ")
    assert "stopped, as by SIGSTOP" in str(error)


def test_a_worker_that_ignores_sigterm_is_killed_with_its_children(run_dir: RunDir) -> None:
    stubborn = """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen(["sleep", "1000"])
        progress(5)
        wait()
    """
    start = time.monotonic()
    failure_of(run_dir, stubborn, "time.sleep(0.5); fail(ValueError('x'))")
    assert time.monotonic() - start < 3


def test_children_of_a_worker_that_ended_well_end_too(run_dir: RunDir) -> None:
    supervise(
        run_dir, ["child = subprocess.Popen(['sleep', '1000']); (paths.path / 'child').write_text(str(child.pid))"]
    )
    child = int((run_dir.path / "child").read_text())
    deadline = time.monotonic() + 2
    while psutil.pid_exists(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run(run_dir: RunDir, signum: signal.Signals, code: int) -> None:
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signum))
    timer.start()
    start = time.monotonic()
    with pytest.raises(Interrupted) as caught:
        supervise(run_dir, ["wait()", "wait()"])
    timer.join()
    assert caught.value.exit_code == code
    assert time.monotonic() - start < 2


def test_a_second_signal_does_not_wait_for_the_grace(run_dir: RunDir) -> None:
    stubborn = "signal.signal(signal.SIGTERM, signal.SIG_IGN); wait()"
    timers = [threading.Timer(s, os.kill, (os.getpid(), signal.SIGINT)) for s in (0.6, 0.75)]
    for timer in timers:
        timer.start()
    start = time.monotonic()
    with pytest.raises(Interrupted):
        supervise(run_dir, [stubborn])
    for timer in timers:
        timer.join()
    assert time.monotonic() - start < 1.05


def test_handlers_are_put_back(run_dir: RunDir) -> None:
    before = signal.getsignal(signal.SIGINT)
    supervise(run_dir, ["pass"])
    assert signal.getsignal(signal.SIGINT) is before


def test_logs_are_kept(run_dir: RunDir, tmp_path: Path) -> None:
    supervise(run_dir, ["print('out'); print('err', file=sys.stderr)", "pass"])
    run_dir.keep_logs(tmp_path / "a")
    assert [path.name for path in (tmp_path / "a" / "logs").iterdir()] == ["rank-0.log"]
    assert sorted((tmp_path / "a/logs/rank-0.log").read_text().split()) == ["err", "out"]
