"""Real processes against the serial reference: every context mode, placed every way, with delays everywhere.

The model is small and random; bits do not care.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from paceline.launch.frames import FrameWorkload
from paceline.launch.local import run_local
from paceline.pipeline.topology import ContextMode, SleepTopology, WorldTopology
from paceline.runtime.result import Decision
from paceline.runtime.serial import run_serial
from paceline.runtime.spec import RunSpec
from paceline.stages.dit.config import DiTConfig
from paceline.stages.dit.network import save_dit
from tests.stages.conftest import random_model

# Each mode once, and both schedules. test_denoise.py compares each mode under every partition of the steps.
USUAL = {"clean": "mirrored", "cascade": "wavefront", "staggered": "mirrored", "matched": "wavefront"}
PLACED = [
    pytest.param(mode, schedule, marks=[] if USUAL[mode] == schedule else [pytest.mark.exhaustive])
    for mode in ContextMode
    for schedule in ("wavefront", "mirrored")
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of two layers."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_dit(random_model(DiTConfig(width=64, layers=2, heads=2)), path)
    return path


def two_groups(weights: Path, mode: str, **change: object) -> WorldTopology:
    """Two steps on two groups; the clean pass on the second."""
    matched = mode == "matched"
    kv = [] if matched else [{"from": "step1", "to": "step0", "carries": "kv", "via": "zmq", "inflight": 8}]
    made = {
        "name": "two",
        "model": {"weights": str(weights), "steps": 2},
        "context": {"mode": mode, "window": 4},
        "groups": {"early": {}, "late": {}},
        "stages": {
            "source": {"kind": "source", "group": "early"},
            "step0": {"kind": "denoise", "group": "early", "steps": [0]},
            "step1": {"kind": "denoise", "group": "late", "steps": [1] if matched else [1, "clean"]},
            "decode": {"kind": "decode", "group": "late"},
            "sink": {"kind": "sink", "group": "early"},
        },
        "edges": [
            {"from": "source", "to": "step0", "via": "dist"},
            {"from": "step0", "to": "step1", "via": "dist"},
            {"from": "step1", "to": "decode", "via": "zmq"},
            {"from": "decode", "to": "sink", "via": "zmq"},
            *kv,
        ],
        "inject": {"jitter_ms": 2, "seed": 5},
    }
    return WorldTopology.model_validate(made | change)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "schedule"), PLACED)
def test_four_sessions_under_jitter_give_the_serial_bits(
    mode: ContextMode, schedule: str, weights: Path, tmp_path: Path
) -> None:
    spec = RunSpec(two_groups(weights, mode.value, schedule=schedule), frames=6, sessions=4, seed=3, kv_hash=True)
    reference = run_serial(spec, tmp_path)
    found = run_local(FrameWorkload(spec))
    assert [s["outputs_sha256"] for s in found["sessions"]] == [s.outputs_sha256 for s in reference.sessions]
    assert found["kv_sha256"] == reference.ranks[0].kv_sha256
    for edge in found["edges"]:
        limit = spec.topology.edges[edge["edge"]].inflight
        assert 0 < edge["peak_items"] <= limit


@pytest.mark.slow
def test_batches_of_sessions_agree_tile_for_tile(weights: Path, tmp_path: Path) -> None:
    """Four sessions in joint forwards: pixels within 1 of 255, and every tile the same but for that."""
    serial = RunSpec(two_groups(weights, "cascade"), frames=6, sessions=4, seed=3, out=tmp_path / "a")
    (tmp_path / "serial").mkdir()
    run_serial(serial, tmp_path / "serial")
    stages = two_groups(weights, "cascade").model_dump(by_alias=True)["stages"]
    for name in ("step0", "step1"):
        stages[name] |= {"max_batch": 4}
    batched = two_groups(weights, "cascade", stages=stages, deterministic=False)
    run_local(FrameWorkload(RunSpec(batched, frames=6, sessions=4, seed=3, out=tmp_path / "b")))
    for session in range(4):
        one = np.load(tmp_path / "a" / f"session-{session}.npy.part").astype(int).ravel()
        other = np.load(tmp_path / "b" / f"session-{session}.npy").astype(int).ravel()
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= 1


@pytest.mark.slow
def test_frames_with_fewer_steps_replay_from_the_journal(weights: Path, tmp_path: Path) -> None:
    """Decisions of a run that could not keep up, taken again by the serial reference and by another live run."""
    change = {"deadline_ms": 4, "on_late": "fewer_steps"}
    live = RunSpec(two_groups(weights, "cascade", **change), frames=20, sessions=2, seed=3, kv_hash=True)
    found = run_local(FrameWorkload(live))
    decisions = [Decision(**entry) for entry in found["decisions"]]
    assert any(d.what == "fewer_steps" and d.value == 1 for d in decisions)
    assert len(decisions) < 40, "the first frame of a session is never late"
    quiet = two_groups(weights, "cascade", on_late="fewer_steps", deadline_ms=1000, inject={"jitter_ms": 0})
    quiet = quiet.model_copy(update={"deadline_ms": None})
    again = run_serial(RunSpec(quiet, frames=20, sessions=2, seed=3, kv_hash=True), tmp_path, None, decisions)
    assert [s["outputs_sha256"] for s in found["sessions"]] == [s.outputs_sha256 for s in again.sessions]
    assert found["kv_sha256"] == again.ranks[0].kv_sha256


@pytest.mark.slow
def test_a_slow_consumer_bounds_memory(tmp_path: Path) -> None:
    """100 items of 4 MiB through a stage that is slower than its source: 400 MiB pass, at most a few stay."""
    size = 4 * 2**20
    edge = {"via": "zmq", "inflight": 3}
    topology = SleepTopology.model_validate(
        {
            "name": "slow",
            "workload": "sleep",
            "groups": {"a": {}, "b": {}},
            "stages": {
                "source": {"kind": "source", "group": "a", "item_bytes": size},
                "slow": {"kind": "sleep", "group": "b", "ms": 8},
                "sink": {"kind": "sink", "group": "a"},
            },
            "edges": [{"from": "source", "to": "slow", **edge}, {"from": "slow", "to": "sink", **edge}],
        }
    )
    short, long = (
        run_local(FrameWorkload(RunSpec(topology, frames=frames, sessions=1, seed=0))) for frames in (20, 100)
    )
    assert all(edge["peak_items"] <= 3 and edge["peak_bytes"] <= 3 * size for edge in long["edges"])
    grown = [b["peak_rss_bytes"] - a["peak_rss_bytes"] for a, b in zip(short["ranks"], long["ranks"], strict=True)]
    # 320 MiB more have passed. What a rank may hold besides its credits is what ZMQ and the allocator keep warm.
    assert max(grown) < 12 * size, f"memory grew by {grown} bytes"
