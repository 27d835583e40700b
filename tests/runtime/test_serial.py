"""The serial reference: what it promises by itself, without the pipeline that is compared with it elsewhere."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from paceline.kernels.philox import session_seed
from paceline.pipeline.load import load_topology
from paceline.runtime.result import FRAMES_FILE, RunResult
from paceline.runtime.serial import run_serial
from paceline.runtime.spec import RunSpec
from paceline.stages.feed import PayloadFeed
from tests.harness import ROOT


def run(folder: Path, name: str, frames: int, sessions: int = 1, seed: int = 3, **settings: object) -> RunResult:
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
    topology = load_topology(ROOT / "topologies" / f"{name}.yaml", overrides)
    folder.mkdir()
    return run_serial(RunSpec(topology, frames, sessions, seed, out=folder, kv_hash=True), folder)  # type: ignore[arg-type]


def frames_of(folder: Path, session: int = 0) -> bytes:
    return np.load(folder / FRAMES_FILE.format(session)).tobytes()


def test_a_longer_session_begins_as_a_shorter_one(tmp_path: Path) -> None:
    short, long = run(tmp_path / "a", "world-2", 5), run(tmp_path / "b", "world-2", 9)
    size = 32 * 32 * 3
    assert frames_of(tmp_path / "b")[: 5 * size] == frames_of(tmp_path / "a")[: 5 * size]
    assert hashlib.sha256(frames_of(tmp_path / "a")[: 5 * size]).hexdigest() == short.sessions[0].outputs_sha256
    assert long.sessions[0].outputs_sha256 != short.sessions[0].outputs_sha256


def test_a_session_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    alone, three = run(tmp_path / "a", "world-2", 4), run(tmp_path / "b", "world-2", 4, sessions=3)
    hashes = [session.outputs_sha256 for session in three.sessions]
    assert hashes[0] == alone.sessions[0].outputs_sha256
    assert len(set(hashes)) == 3
    assert alone.ranks[0].kv_sha256.items() <= three.ranks[0].kv_sha256.items()


@pytest.mark.parametrize("window", [1, 3])
def test_with_one_step_cascade_is_clean(tmp_path: Path, window: int) -> None:
    """With one step every earlier frame is finished for it, in both modes."""
    one = {"model__steps": 1, "context__window": window, "stages__steps__steps": "[0,clean]", "groups__all__threads": 1}
    found = {
        mode: run(tmp_path / mode, "world-1", 6, context__mode=mode, **one)
        for mode in ("clean", "cascade", "staggered")
    }
    first = {mode: result.sessions[0].outputs_sha256 for mode, result in found.items()}
    assert first["clean"] == first["cascade"] != first["staggered"]
    assert found["clean"].ranks[0].kv_sha256 == found["cascade"].ranks[0].kv_sha256


def test_every_sleeper_adds_one(tmp_path: Path) -> None:
    spec = load_topology(ROOT / "topologies" / "sleep-4.yaml", ["edges.0.inflight=2"])
    sleepers = sum(stage.kind == "sleep" for stage in spec.stages.values())
    result = run(tmp_path / "a", "sleep-4", 3)
    feed = PayloadFeed(session_seed(3, 0), spec.item_bytes)  # type: ignore[union-attr]
    wanted = hashlib.sha256(b"".join((feed.next(frame)[0][0] + sleepers).numpy().tobytes() for frame in range(3)))
    assert result.sessions[0].outputs_sha256 == wanted.hexdigest()
