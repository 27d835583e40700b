"""What happens under torchrun when a rank dies: all end and say why, or all start anew and come out right."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.faults.runs import write_topology
from tests.harness import ROOT, free_port, kill_tree
from tests.launch.ways import TORCHRUN, agent, serial

pytestmark = pytest.mark.exclusive


@contextmanager
def running(commands: Sequence[Sequence[str]], folder: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """The commands, side by side, with a temporary folder of their own that must be empty of runs in the end."""
    with tempfile.TemporaryDirectory(prefix="t-") as temporary:
        processes = []
        for number, command in enumerate(commands):
            with (folder / f"errors-{number}").open("w") as errors:
                process = subprocess.Popen(
                    command, cwd=ROOT, env={**os.environ, "TMPDIR": temporary}, stdout=subprocess.PIPE, stderr=errors,
                    text=True, start_new_session=True,
                )  # fmt: skip
            processes.append(process)
        try:
            yield processes
            deadline = time.monotonic() + 2
            while list(Path(temporary).glob("paceline-*")):
                assert time.monotonic() < deadline, "a run's folder is left"
                time.sleep(0.02)
        finally:
            for process in processes:
                kill_tree(process.pid)
                process.communicate()


def ranks_of(processes: Sequence[subprocess.Popen[str]], world_size: int) -> dict[int, psutil.Process]:
    """The ranks of all agents, once all of them serve their channels."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = {}
        for process in processes:
            for child in psutil.Process(process.pid).children():
                # ZMQ's threads are there once a rank has opened its sockets.
                if child.status() != psutil.STATUS_ZOMBIE and any(_is_zmq(thread) for thread in _threads(child)):
                    found[int(child.environ()["RANK"])] = child
        if len(found) == world_size:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{world_size} ranks did not start")


def _threads(process: psutil.Process) -> list[str]:
    try:
        return [path.read_text() for path in Path(f"/proc/{process.pid}/task").glob("*/comm")]
    except OSError:
        return []


def _is_zmq(name: str) -> bool:
    return name.startswith("ZMQ")


def command(topology: Path, frames: int) -> list[str]:
    return ["-m", "paceline.launch", str(topology), "--frames", str(frames), "--quiet", "--json"]


@pytest.mark.slow
def test_a_killed_rank_ends_both_agents(tmp_path: Path) -> None:
    port = free_port()
    run = command(write_topology(tmp_path, "dist"), 100000)
    with running([[*agent(node, 1, port), *run] for node in range(2)], tmp_path) as agents:
        victims = ranks_of(agents, 2)
        time.sleep(1.0)
        start = time.monotonic()
        victims[1].send_signal(signal.SIGKILL)
        assert [process.wait(20) for process in agents] == [1, 1]
        print(f"both agents ended after {time.monotonic() - start:.2f} s")
    # The agent whose rank only noticed says whom it lost; the other one's report names the signal.
    texts = "".join((tmp_path / f"errors-{number}").read_text() for number in range(2))
    assert "PeerLost: rank 1 is lost" in texts, texts
    assert "SIGKILL" in texts, texts


@pytest.mark.slow
def test_a_restart_runs_to_the_end_with_the_same_frames(tmp_path: Path) -> None:
    topology = write_topology(tmp_path, "dist")
    launcher = [*TORCHRUN, "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    with running([[*launcher, *command(topology, 200)]], tmp_path) as (process,):
        victim = ranks_of([process], 2)[1]
        time.sleep(0.5)
        victim.send_signal(signal.SIGKILL)
        output, _ = process.communicate(timeout=90)
        assert process.returncode == 0, (tmp_path / "errors-0").read_text()
    summary = json.loads(output.splitlines()[-1])
    reference = serial(str(topology), 1, "--frames", "200", "--quiet")
    assert summary["sessions"] == reference["sessions"]


def test_a_wrong_number_of_processes_is_told_once(tmp_path: Path) -> None:
    launcher = [*TORCHRUN, "--standalone", "--nproc-per-node", "3"]
    with running([[*launcher, *command(write_topology(tmp_path), 5)]], tmp_path) as (process,):
        output, _ = process.communicate(timeout=60)
    errors = (tmp_path / "errors-0").read_text()
    assert process.returncode == 1
    assert output == ""
    # Rank 0 says it with file and line; torchrun's report repeats what each rank left.
    said = r"^/\S+two-ranks\.yaml:4: groups: add up to 2 ranks \(early: 1, late: 1\), but 3 processes were started; "
    assert len(re.findall(said, errors, re.MULTILINE)) == 1, errors
    assert "TopologyError: " in errors
    assert "exitcode  : 2" in errors
