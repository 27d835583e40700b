"""`paceline generate` as its user types it: to the end, or with workers that tests can hurt."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.faults.runs import _SHARED_MEMORY, Run, _environment
from tests.harness import ROOT, kill_tree

PACELINE = (sys.executable, "-c", "from paceline.launch.cli import main; main()", "generate")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")
_DEADLINE_S = 100.0


def command(*arguments: str, torchrun: int = 0) -> tuple[dict[str, Any], str, str]:
    """The JSON object that ends standard output, what stands before it, and standard error."""
    argv = [*PACELINE, *arguments, "--json"]
    if torchrun:
        launcher = [*TORCHRUN, "--nproc-per-node", str(torchrun), "-m", "paceline.launch", "generate"]
        argv = [*launcher, *arguments, "--json"]
    process = subprocess.Popen(
        argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=_DEADLINE_S)
    finally:
        kill_tree(process.pid)
    assert process.returncode == 0, errors
    *before, last = output.rstrip("\n").splitlines()
    return json.loads(last), "\n".join(before), errors


class GenerateRun(Run):
    """A running generation in a temporary folder of its own."""

    def __init__(self, folder: Path, *arguments: str, command: Sequence[str] = PACELINE) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="t-")
        self.temporary = Path(self._temporary.name)
        self._shared = set(_SHARED_MEMORY.iterdir())
        self._output, self._errors = folder / "output", folder / "errors"
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*command, *arguments], cwd=ROOT, env=_environment(self.temporary), stdout=output, stderr=errors,
                start_new_session=True,
            )  # fmt: skip
        self.family: list[psutil.Process] = []

    def until_pieces(self, count: int, deadline_s: float = 90.0) -> dict[int, psutil.Process]:
        """Wait until some text is committed; the workers by rank."""
        deadline = time.monotonic() + deadline_s
        while self._pieces() < count:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"no {count} pieces of text:\n{self.output}\n{self.errors}")
            time.sleep(0.01)
        self.family = psutil.Process(self.process.pid).children(recursive=True)
        return self.workers()

    def _pieces(self) -> int:
        try:
            return sum(len(file.read_bytes().splitlines()) for file in self.temporary.glob("paceline-*/stream.jsonl"))
        except FileNotFoundError:
            return 0

    def summary(self) -> dict[str, Any]:
        """The JSON object that ends standard output."""
        found: dict[str, Any] = json.loads(self.output.rstrip("\n").splitlines()[-1])
        return found
