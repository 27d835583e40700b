"""Standard output and error that take no more: nothing that was asked for with `--out` is lost by it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.harness import ROOT

START = "from paceline.launch.cli import main; main()"
GENERATE = ["generate", "topologies/speculate-2.yaml", "--prompt", "import os", "--max-tokens", "400"]


def start(arguments: list[str], redirection: str) -> subprocess.CompletedProcess[str]:
    shell = ["/bin/bash", "-c", f'"$@" {redirection}; echo "${{PIPESTATUS[0]}}" >&3', "bash", sys.executable, "-c"]
    read, write = os.pipe()
    shell[2] = shell[2].replace(">&3", f">&{write}")
    done = subprocess.run(
        [*shell, START, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, pass_fds=(write,)
    )
    os.close(write)
    with open(read) as codes:
        done.returncode = int(codes.read())
    return done


def test_texts_are_kept_where_standard_output_is_closed_in_between(tmp_path: Path) -> None:
    done = start([*GENERATE, "--out", str(tmp_path)], "| head -c 3")
    assert done.returncode == 1
    assert "standard output can't be written" in done.stderr and "Traceback" not in done.stderr
    assert json.loads((tmp_path / "texts.jsonl").read_text())["text"]


def test_a_plan_that_nobody_reads_ends_without_a_word() -> None:
    done = start(["plan", "topologies/world-2.yaml", "--json"], "| true")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_progress_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    done = start(["run", "topologies/world-2.yaml", "--frames", "3", "--out", str(tmp_path)], "2>/dev/full")
    assert done.returncode == 0
    assert json.loads((tmp_path / "summary.json").read_text())["sessions"][0]["frames"] == 3
