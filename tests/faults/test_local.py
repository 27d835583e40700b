"""What happens to `paceline run` when something dies, hangs, fails or is interrupted."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from paceline.launch.errors import RunFailedError
from paceline.launch.frames import FrameWorkload
from paceline.launch.local import run_local
from paceline.pipeline.load import load_topology
from paceline.runtime.spec import RunSpec
from tests.faults import failing_worker
from tests.faults.runs import Run, write_topology

pytestmark = pytest.mark.exclusive


@pytest.mark.parametrize(
    ("rank", "via", "name"),
    [
        (0, "zmq", "worker rank 0 (group early: source, step0, sink)"),
        (1, "dist", "worker rank 1 (group late: step1)"),
    ],
)
def test_a_killed_worker_ends_the_run_by_name(rank: int, via: str, name: str, tmp_path: Path) -> None:
    with Run(tmp_path, "--json", via=via) as run:
        worker = run.until_frames()[rank]
        start = time.monotonic()
        worker.kill()
        assert run.wait(2.0) == 1
        print(f"exit after {time.monotonic() - start:.3f} s")
        run.check_nothing_left()
        assert run.output == ""
        assert run.errors.startswith(f"paceline: {name} was killed by SIGKILL")
        assert "Traceback" not in run.errors


def test_no_worker_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    with Run(tmp_path) as run:
        run.until_frames()
        run.process.kill()
        run.process.wait()
        run.check_nothing_left(2.0)


def test_an_interrupt_ends_the_run_in_order(tmp_path: Path) -> None:
    with Run(tmp_path, "--json") as run:
        run.until_frames()
        # A terminal sends Ctrl-C to the whole process group.
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.wait(2.0) == 130
        run.check_nothing_left()
        assert run.errors == "paceline: interrupted by SIGINT; all workers were stopped\n"


def test_an_interrupt_while_the_workers_start(tmp_path: Path) -> None:
    with Run(tmp_path) as run:
        deadline = time.monotonic() + 30
        while len(run.workers()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        run.process.send_signal(signal.SIGINT)
        assert run.wait(2.0) == 130
        run.check_nothing_left()


def test_a_stopped_worker_is_reported_as_hung_and_a_stopped_supervisor_accuses_nobody(tmp_path: Path) -> None:
    with Run(tmp_path, "--hang-timeout", "2") as run:
        workers = run.until_frames()
        run.process.send_signal(signal.SIGSTOP)
        time.sleep(2.5)
        run.process.send_signal(signal.SIGCONT)
        time.sleep(0.5)
        assert run.process.poll() is None, run.errors
        workers[1].suspend()
        assert run.wait(5.0) == 1
        run.check_nothing_left()
        said = r"paceline: worker rank 1 \(group late: step1\) hangs: no progress for \d s \(the process is stopped"
        assert re.match(said, run.errors), run.errors


@pytest.mark.parametrize("rank", [0, 1])
def test_the_error_of_a_stage_is_what_the_user_sees(rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(failing_worker.RANK, str(rank))
    monkeypatch.setenv(failing_worker.FRAME, "7")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    spec = RunSpec(load_topology(write_topology(tmp_path)), frames=1000, sessions=2, seed=0, out=tmp_path / "out")
    start = time.monotonic()
    with pytest.raises(RunFailedError) as caught:
        run_local(FrameWorkload(spec), worker=("-m", "tests.faults.failing_worker"))
    assert time.monotonic() - start < 30
    name = ["worker rank 0 (group early: source, step0, sink)", "worker rank 1 (group late: step1)"][rank]
    expected = f"{name} failed: stage step{rank} on rank {rank} failed at session 0, frame 7: ValueError: no such tile"
    assert str(caught.value) == expected
    assert caught.value.detail == ""
    assert "ValueError: no such tile" in (tmp_path / "out" / "logs" / f"rank-{rank}.log").read_text()
    assert list(tmp_path.glob("paceline-*")) == []
