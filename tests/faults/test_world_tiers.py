"""World runs in which a session loses KV or finds no room: it ends by name, and the others are what they would be."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline.launch.frames import FrameWorkload
from paceline.launch.local import run_local
from paceline.launch.workload import Audience
from paceline.pipeline.topology import WorldTopology
from paceline.runtime.serial import run_serial
from paceline.runtime.spec import RunSpec
from tests.faults import damaging_worker
from tests.harness import ROOT
from tests.launch.small_world import FRAME, save_small
from tests.launch.test_modes import two_groups
from tests.launch.ways import PACELINE
from tests.stages.lockstep import frames_of

WORKER = ("-m", "tests.faults.damaging_worker")
FRAMES = 36


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of two layers."""
    return save_small(tmp_path_factory.mktemp("weights"))


def recalling(weights: Path, via: str, mode: str = "cascade", alone: bool = False, **change: object) -> WorldTopology:
    """Two groups whose frames recall two others. `alone`: the clean pass has the second group for itself, and only KV
    comes back from it."""
    topology = two_groups(weights, mode, inject={}, **change).model_dump(mode="json", by_alias=True)
    topology["context"] |= {"recall": 2}
    if alone:
        topology["stages"]["step0"]["steps"] = [0, 1]
        topology["stages"]["step1"]["steps"] = ["clean"]
        topology["edges"] = [edge for edge in topology["edges"] if edge["from"] != "step1" or edge["carries"] == "kv"]
        topology["edges"].append({"from": "step0", "to": "decode"})
    for edge in topology["edges"]:
        edge["via"] = via
    return WorldTopology.model_validate(topology)


def on_disk(folder: Path) -> dict[str, object]:
    """Four frames in hbm, and all others in a file."""
    return {"hbm": 4 * FRAME, "dram": 0, "nvme": {"path": str(folder), "size": 200 * FRAME}, "policy": "slab"}


def reference(spec: RunSpec, folder: Path) -> tuple[list[bytes], dict[str, str]]:
    """The frames of each session and the hashes of their KV, with everything in memory."""
    folder.mkdir()
    found = run_serial(replace(spec, out=folder), folder)
    frames = [frames_of(folder, session) for session in range(spec.sessions)]
    return frames, found.ranks[0].kv_sha256


def check(found: dict[str, Any], out: Path, frames: list[bytes], kv: dict[str, str]) -> list[dict[str, Any]]:
    """What was shown is right, and whole but for sessions that failed; those sessions."""
    failed = []
    for session, right in zip(found["sessions"], frames, strict=True):
        number = session["id"]
        shown = np.load(out / f"session-{number}.npy")
        assert len(shown) == session["frames"]
        assert shown.tobytes() == right[: shown.size], f"a frame of session {number} is wrong"
        own = {key: value for key, value in kv.items() if key.startswith(f"{number}/")}
        if session["failed"] is None:
            assert shown.size == len(right)
            assert own.items() <= found["kv_sha256"].items()
        else:
            assert 0 < shown.size < len(right)
            failed.append(session)
    assert found["kv_sha256"].items() <= kv.items()
    assert found["warnings"] == [f"session {s['id']} failed at frame {s['frames']}: {s['failed']}" for s in failed]
    return failed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("via", "schedule", "alone", "stage", "victim"),
    [
        ("zmq", "wavefront", False, "step1", 0),
        ("dist", "mirrored", False, "step0", 1),
        ("zmq", "wavefront", True, "step1", 1),
        ("dist", "mirrored", True, "step1", 0),
    ],
)
def test_damaged_blocks_end_their_session_alone(
    via: str, schedule: str, alone: bool, stage: str, victim: int, small: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    budget = on_disk(tmp_path / "kv")
    topology = recalling(small, via, alone=alone, schedule=schedule, tiers={"early": budget, "late": budget})
    out = tmp_path / "out"
    spec = RunSpec(topology, FRAMES, sessions=2, seed=3, out=out, kv_hash=True)
    frames, kv = reference(spec, tmp_path / "serial")
    for name, value in ((damaging_worker.STAGE, stage), (damaging_worker.SESSION, victim), (damaging_worker.AFTER, 25)):
        monkeypatch.setenv(name, str(value))
    found = run_local(FrameWorkload(spec), worker=WORKER)
    (failed,) = check(found, out, frames, kv)
    assert failed["id"] == victim
    assert failed["failed"].startswith(f"stage {stage} on rank ")
    assert "is lost: slot" in failed["failed"] and "has a wrong CRC-32C" in failed["failed"]
    assert sum(group["errors"].get("checksum", 0) for group in found["tiers"].values()) > 0
    assert not list((tmp_path / "kv").glob("*")), "a file of blocks was left behind"
    # Pictures and files of a session that ended early are there, too.
    names = {path.name for path in out.iterdir()}
    videos = {f"session-{k}.{kind}" for k in (0, 1) for kind in ("npy", "gif", "mp4")}
    books = {"summary.json", "journal.jsonl", "trace.json", "gantt.png", "latency.png", "contact-sheet.png"}
    assert videos | books <= names


def command(topology: WorldTopology, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`paceline run`, as its user types it."""
    file = folder / "topology.yaml"
    file.write_text(topology.model_dump_json(by_alias=True, exclude_defaults=True))
    return subprocess.run(
        [*PACELINE, "run", str(file), "--seed", "3", "--json", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=100,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "pairs"), [("wavefront", 1), ("mirrored", 2)])
def test_a_session_without_room_ends_with_a_warning_and_exit_code_0(
    schedule: str, pairs: int, small: Path, tmp_path: Path
) -> None:
    # Of each pair of sessions that share tiers there is room for one at its full length, and for the other's window.
    # Mirrored sessions meet the group at another stage, which has a share of its own.
    budget = {"hbm": 8 * FRAME * pairs, "dram": 40 * FRAME * pairs}
    sessions = 2 * pairs
    topology = recalling(small, "zmq", schedule=schedule, tiers={"late": budget})
    out = tmp_path / "out"
    frames, kv = reference(RunSpec(topology, FRAMES, sessions, 3, out=tmp_path, kv_hash=True), tmp_path / "serial")
    options = ("--frames", str(FRAMES), "--sessions", str(sessions), "--kv-hash", "--out", str(out))
    done = command(topology, tmp_path, *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert json.loads((out / "summary.json").read_text()) == found
    failed = check(found, out, frames, kv)
    assert sorted(session["id"] % pairs for session in failed) == list(range(pairs))
    for session, warning in zip(failed, found["warnings"], strict=True):
        assert f"no tier has room for another block of session {session['id']}: " in session["failed"]
        assert f"paceline: warning: {warning}\n" in done.stderr
        assert f"failed at frame {session['frames']}" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_only_session_fails_and_so_does_the_run(small: Path, tmp_path: Path) -> None:
    topology = recalling(small, "zmq", tiers={"late": {"hbm": 8 * FRAME}})
    out = tmp_path / "out"
    done = command(topology, tmp_path, "--frames", str(FRAMES), "--out", str(out), "--quiet")
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    (session,) = json.loads(line)["sessions"]
    told = f"session 0 failed at frame {session['frames']}: {session['failed']}"
    assert done.stderr.splitlines() == [f"paceline: warning: {told}", f"paceline: every session failed: {told}"]
    assert len(np.load(out / "session-0.npy")) == session["frames"] > 0


@pytest.mark.slow
def test_sessions_that_fail_before_their_first_frame(small: Path, tmp_path: Path) -> None:
    """Half a frame fits: the prompt is too much. What can be written of such a run is written."""
    topology = recalling(small, "dist", deadline_ms=20, tiers={"late": {"hbm": FRAME // 2, "block_size": 8}})
    out = tmp_path / "out"
    seen: list[int] = []
    found = run_local(FrameWorkload(RunSpec(topology, 12, sessions=2, seed=3, out=out), Audience(seen.append)))
    for session in found["sessions"]:
        assert (session["frames"], session["late"], session["shape"]) == (0, 0, [])
        assert session["failed"].startswith("stage step1 on rank 1, at prompt frame ")
    assert [found[name] for name in ("frames_per_second", "period_ms", "lateness_ms")] == [None, None, None]
    assert set(seen) == {0}
    names = {path.name for path in out.iterdir()}
    assert {"summary.json", "journal.jsonl", "trace.json", "gantt.png", "latency.png"} <= names
    assert not {name for name in names if name.startswith(("session", "contact"))}
