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


def test_output_that_takes_no_more_is_named() -> None:
    done = start(["plan", "topologies/speculate-2.yaml", "--json"], ">/dev/full")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("paceline: standard output can't be written: No space left on device; ")


def test_a_working_directory_that_was_removed(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    code = f"import os; os.chdir({str(folder)!r}); os.rmdir({str(folder)!r}); {START}"
    world = str(ROOT / "topologies" / "world-1.yaml")
    done = subprocess.run(
        [sys.executable, "-c", code, "run", world, "--frames", "1"], cwd=ROOT, capture_output=True, text=True,
        timeout=100,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "paceline: the working directory was removed; change to one that exists\n"


def test_too_few_open_files(tmp_path: Path) -> None:
    """A limit that may be raised is raised; another one is named before anything starts."""
    run = ["run", "topologies/world-1.yaml", "--frames", "1", "--quiet"]
    limited = ["/bin/bash", "-c", 'ulimit "$1" 24; shift; exec "$@"', "bash"]
    for which, code in (("-Sn", 0), ("-n", 2)):
        done = subprocess.run(
            [*limited, which, sys.executable, "-c", START, *run], cwd=ROOT, capture_output=True, text=True, timeout=100
        )
        assert done.returncode == code, done.stderr
        named = "a process may have 24 open files, and this run needs " in done.stderr
        assert (named, "Traceback" in done.stderr) == (code == 2, False)
