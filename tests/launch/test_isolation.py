"""Ranks import what the environment has, whatever lies in the user's folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.harness import ROOT, free_port

BIN = Path(sys.executable).parent
WORLD = str(ROOT / "topologies" / "world-2.yaml")
TEXT = str(ROOT / "topologies" / "speculate-2.yaml")
NAMES = ("random", "numpy", "zoo", "msgspec", "zmq", "torch", "transformers", "queue")
TORCHRUN = (str(BIN / "torchrun"), "--nproc-per-node", "2", "--master-addr", "127.0.0.1")


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        (str(BIN / "paceline"), "run", WORLD, "--frames", "2", "--json", "--quiet"),
        (str(BIN / "paceline"), "run", WORLD, "--frames", "2", "--json", "--quiet", "--serial"),
        (str(BIN / "paceline"), "generate", TEXT, "--prompt", "x", "--max-tokens", "2", "--json", "--quiet"),
        (*TORCHRUN, "--master-port", "PORT", "-m", "paceline.launch", WORLD, "--frames", "2", "--json", "--quiet"),
    ],
    ids=["processes", "serial", "generate", "torchrun"],
)
def test_modules_in_the_working_directory_are_not_imported(command: Sequence[str], tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'a').write({name!r})\n")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    argv = [str(free_port()) if part == "PORT" else part for part in command]
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "imported").exists(), (tmp_path / "imported").read_text()
    assert json.loads(done.stdout.splitlines()[-1])["sessions"]
