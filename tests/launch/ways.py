"""The ways to run a topology, each as its user types it; all give the summary that ends standard output."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tests.harness import ROOT, free_port, kill_tree

Summary = dict[str, Any]

PACELINE = (sys.executable, "-c", "from paceline.launch.cli import main; main()")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
_DEADLINE_S = 100.0


def local(topology: str, ranks: int, *options: str) -> Summary:
    """`paceline run TOPOLOGY`"""
    return _last(_run([[*PACELINE, "run", topology, *options, "--json"]])[0])


def serial(topology: str, ranks: int, *options: str) -> Summary:
    """`paceline run TOPOLOGY --serial`"""
    return local(topology, ranks, *options, "--serial")


def torchrun(topology: str, ranks: int, *options: str) -> Summary:
    """`torchrun --nproc-per-node N -m paceline.launch TOPOLOGY`"""
    launcher = [*TORCHRUN, "--standalone", "--nproc-per-node", str(ranks)]
    return _last(_run([[*launcher, "-m", "paceline.launch", topology, *options, "--json"]])[0])


def two_agents(topology: str, ranks: int, *options: str) -> Summary:
    """Multi-node torchrun, its two agents on this machine."""
    port = free_port()
    commands = [
        [*agent(node, ranks // 2, port), "-m", "paceline.launch", topology, *options, "--json"] for node in range(2)
    ]
    outputs = _run(commands)
    # The leader's rank reports, and nobody else.
    assert sorted(bool(output.strip()) for output in outputs) == [False, True]
    return _last("".join(outputs))


def agent(node: int, ranks: int, port: int, *options: str) -> list[str]:
    """The beginning of the command line of one of two torchrun agents."""
    place = ["--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", str(ranks)]
    return [*TORCHRUN, *place, "--master-addr", "127.0.0.1", "--master-port", str(port), *options]


WAYS: list[Callable[..., Summary]] = [local, torchrun, two_agents]


def _run(commands: Sequence[Sequence[str]]) -> list[str]:
    """Standard output of commands that run side by side. Raises `AssertionError` with their errors where one fails."""
    processes = [
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        for command in commands
    ]
    try:
        ended = [process.communicate(timeout=_DEADLINE_S) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                kill_tree(process.pid)
                process.communicate()
    errors = "\n".join(error for _, error in ended)
    assert [process.returncode for process in processes] == [0] * len(processes), errors
    return [output for output, _ in ended]


def _last(output: str) -> Summary:
    found: Summary = json.loads(output.rstrip("\n").splitlines()[-1])
    return found
