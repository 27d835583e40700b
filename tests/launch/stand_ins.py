"""Small programs that stand in for workers, so that the supervisor is tested without torch."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from paceline.launch.errors import Interrupts
from paceline.launch.process import WorkerCommand
from paceline.launch.run_dir import RunDir
from paceline.launch.supervise import Supervisor

ROOT = Path(__file__).parents[2]

_PRELUDE = """
import os, signal, subprocess, sys, time
from pathlib import Path
from paceline.launch.failure import Failure
from paceline.launch.run_dir import ProgressWriter
from paceline.launch.run_dir import RunDirPaths
from paceline.launch.worker_main import die_with_parent
from paceline.runtime.errors import PeerLost, StageError
die_with_parent()
paths, rank = RunDirPaths(Path(sys.argv[1])), int(os.environ["RANK"])
progress = ProgressWriter(paths.progress, rank)
progress(0)

def fail(error):
    Failure.of(rank, error).write(paths.path)
    os._exit(1)

def wait():
    while True:
        time.sleep(0.02)
        progress(1)
"""


def commands(run_dir: RunDir, programs: Sequence[str]) -> list[WorkerCommand]:
    """A worker for each program; a program sees `rank`, `paths`, `progress`, `fail(error)` and `wait()`."""
    return [
        WorkerCommand(
            rank,
            f"worker rank {rank}",
            [sys.executable, "-c", _PRELUDE + textwrap.dedent(program), str(run_dir.path)],
            {"RANK": str(rank), "PYTHONPATH": str(ROOT)},
        )
        for rank, program in enumerate(programs)
    ]


def supervise(run_dir: RunDir, programs: Sequence[str], hang_timeout_s: float = 30.0) -> None:
    """See the programs through."""
    with Interrupts() as interrupts:
        Supervisor(commands(run_dir, programs), run_dir, interrupts, hang_timeout_s).run()
