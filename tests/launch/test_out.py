"""`--out`: refused before the start where it can't be written, and whatever happens later, what was made is kept."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from paceline.pipeline.load import load_topology
from paceline.runtime.serial import run_serial
from paceline.runtime.spec import RunSpec
from tests.harness import ROOT
from tests.launch.small_world import save_small
from tests.launch.test_cli import invoke

WORLD = str(ROOT / "topologies" / "world-2-zmq.yaml")
TEXT = str(ROOT / "topologies" / "speculate-2.yaml")
COMMAND = [sys.executable, "-c", "from paceline.launch.cli import main; main()", "run"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A topology of two ranks with a small world model."""
    folder = tmp_path_factory.mktemp("small")
    document = yaml.safe_load(Path(WORLD).read_text())
    document["model"]["weights"] = str(save_small(folder))
    (folder / "small.yaml").write_text(yaml.safe_dump(document))
    return folder / "small.yaml"


def reference(topology: Path, frames: int, folder: Path) -> np.ndarray[Any, Any]:
    folder.mkdir()
    run_serial(RunSpec(load_topology(topology, []), frames, 1, 0, out=folder), folder)
    made: np.ndarray[Any, Any] = np.load(folder / "session-0.npy.part")
    return made


# -- before the start --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [["run", WORLD, "--frames", "1"], ["generate", TEXT, "--prompt", "x"], ["trace", "record", WORLD, "--frames", "1"]],
    ids=["run", "generate", "trace"],
)
@pytest.mark.parametrize("place", ["file", "below-a-file", "read-only"])
def test_a_place_that_can_not_be_written(tmp_path: Path, command: list[str], place: str) -> None:
    (tmp_path / "file").touch()
    trace = command[0] == "trace"
    # Even root can't write here.
    out = {"file": tmp_path / "file", "below-a-file": tmp_path / "file" / "out", "read-only": Path("/proc/1")}[place]
    if trace:
        out = {"file": tmp_path, "below-a-file": out, "read-only": out / "trace"}[place]
    code, shown, errors = invoke(*command, "--out", str(out))
    assert (code, shown) == (2, "")
    assert errors.startswith(f"paceline: --out {out}: ")
    assert "; name a" in errors or "; make it first" in errors
    assert (tmp_path / "file").stat().st_size == 0


@pytest.mark.parametrize(
    "command",
    [
        ["run", WORLD, "--out"],
        ["run", WORLD, "--replay"],
        ["generate", TEXT, "--park"],
        ["trace", "record", TEXT, "--out"],
    ],
    ids=["run", "replay", "park", "trace"],
)
def test_an_empty_path_is_not_the_working_directory(command: list[str]) -> None:
    code, shown, errors = invoke(*command, "")
    assert (code, shown) == (2, "")
    assert "is empty; name a file or folder" in " ".join(errors.replace("│", " ").split())


def test_frames_that_the_disk_can_not_hold(tmp_path: Path) -> None:
    code, _, errors = invoke("run", WORLD, "--frames", "1000000000", "--sessions", "64", "--out", str(tmp_path))
    assert code == 2
    assert "the frames take 187500000 MiB and the disk has" in errors


# -- while it runs -----------------------------------------------------------------------------------------------------


def files_of_40_kib() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (40 << 10, resource.RLIM_INFINITY))


def test_files_that_take_no_more(small: Path, tmp_path: Path) -> None:
    """The run goes on to its end, its frames are shown and hashed, and what is missing is named."""
    out = tmp_path / "out"
    done = subprocess.run(
        [*COMMAND, str(small), "--frames", "30", "--out", str(out), "--quiet", "--json"],
        cwd=ROOT, capture_output=True, text=True, timeout=100, preexec_fn=files_of_40_kib,
    )  # fmt: skip
    assert done.returncode == 1
    summary = json.loads(done.stdout)
    right = reference(small, 30, tmp_path / "serial")
    (session,) = summary["sessions"]
    assert (session["frames"], session["outputs_sha256"]) == (30, hashlib.sha256(right.tobytes()).hexdigest())
    kept = (40 * 1024 - 128) // 3072
    missing = f"{out}/session-0.npy.part: File too large; it ends after {kept} frames"
    assert f"paceline: warning: not saved: {missing}" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"paceline: outputs in {out} are not complete: {missing}; ")
    np.testing.assert_array_equal(np.load(out / "session-0.npy"), right[:kept])
    assert json.loads((out / "summary.json").read_text())["sessions"] == summary["sessions"]


def test_texts_of_a_generation_that_ends_early(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [*COMMAND[:-1], "generate", TEXT, "--prompt", "import os", "--max-tokens", "1000", "--ignore-eos"]
    with (tmp_path / "errors").open("wb") as errors:
        run = psutil.Popen(
            [*command, "--out", str(out)], cwd=ROOT, stdout=subprocess.PIPE, stderr=errors,
            env={**os.environ, "TMPDIR": "/tmp"},
        )  # fmt: skip
        assert run.stdout is not None
        shown = run.stdout.read(len("import os") + 40)
        run.send_signal(signal.SIGINT)
        assert run.wait(30) == 130
        run.stdout.close()
    (line,) = (out / "texts.jsonl").read_text().splitlines()
    kept = json.loads(line)
    assert (kept["prompt"] + kept["text"]).encode().startswith(shown)
    assert json.loads((out / "summary.json").read_text())["ended"].startswith("interrupted by SIGINT")
    assert f"paceline: keeping the texts so far in {out}" in (tmp_path / "errors").read_text()


def frames_in(out: Path) -> int:
    part = out / "session-0.npy.part"
    return len(np.load(part, mmap_mode="r")) if part.exists() and part.stat().st_size > 128 else 0


def end_by_signal(run: psutil.Process) -> None:
    run.send_signal(signal.SIGINT)


def end_by_a_dead_worker(run: psutil.Process) -> None:
    next(child for child in run.children() if child.cmdline()[0] != "/bin/sh").kill()


@pytest.mark.parametrize(("end", "code"), [(end_by_signal, 130), (end_by_a_dead_worker, 1)])
def test_a_run_that_ends_early_keeps_what_it_made(
    small: Path, tmp_path: Path, end: Callable[[psutil.Process], None], code: int
) -> None:
    out = tmp_path / "out"
    with (tmp_path / "errors").open("wb") as errors:
        run = psutil.Popen(
            [*COMMAND, str(small), "--frames", "100000", "--out", str(out)], cwd=ROOT, stderr=errors,
            stdout=subprocess.DEVNULL, env={**os.environ, "TMPDIR": "/tmp"},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while frames_in(out) < 20:
            assert run.poll() is None and time.monotonic() < deadline, (tmp_path / "errors").read_text()
            time.sleep(0.02)
        end(run)
        assert run.wait(30) == code
    finally:
        for process in [*run.children(recursive=True), run] if run.is_running() else []:
            process.kill()
        run.wait()
    said = (tmp_path / "errors").read_text()
    made = np.load(out / "session-0.npy")
    assert f"paceline: keeping {len(made)} frames in {out}" in said
    assert len(made) >= 20
    np.testing.assert_array_equal(made, reference(small, len(made), tmp_path / "serial"))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["ended"] == summary["sessions"][0]["failed"]
    assert summary["ended"] in said.splitlines()[-1]
    assert summary["sessions"][0]["frames"] == len(made)
    kept = {"summary.json", "journal.jsonl", "latency.png", "contact-sheet.png"}
    assert kept | {f"session-0.{kind}" for kind in ("npy", "gif", "mp4")} == {
        path.name for path in out.iterdir() if path.name != "logs"
    }
