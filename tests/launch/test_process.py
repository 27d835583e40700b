"""A worker never outlives its supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil

from paceline.launch.process import PARENT_VARIABLE
from tests.launch.stand_ins import ROOT

_WORKER = "from paceline.launch.worker_main import die_with_parent; die_with_parent(); print(1, flush=True); input()"
_SUPERVISOR = f"""
import os, subprocess, sys, time
env = {{**os.environ, {PARENT_VARIABLE!r}: str(os.getpid())}}
argv = [sys.executable, "-c", {_WORKER!r}]
child = subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""


def test_it_is_killed_with_its_supervisor() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _SUPERVISOR], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as supervisor:
        assert supervisor.stdout is not None
        worker = psutil.Process(int(supervisor.stdout.readline()))
        assert supervisor.stdout.readline() == "1\n"
        supervisor.send_signal(signal.SIGKILL)
        supervisor.wait()
        deadline = time.monotonic() + 2
        while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_it_ends_at_once_if_its_supervisor_is_gone_already() -> None:
    env = {**os.environ, PARENT_VARIABLE: str(os.getpid() + 1)}
    done = subprocess.run(
        [sys.executable, "-c", _WORKER], env=env, cwd=ROOT, timeout=20, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
