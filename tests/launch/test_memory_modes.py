"""A context memory over real processes and torchrun against the serial reference: every context mode and schedule, and
memory, recall and tiers in one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from paceline.launch.frames import FrameWorkload
from paceline.launch.local import run_local
from paceline.pipeline.load import load_topology
from paceline.pipeline.topology import ContextMode, WorldTopology
from paceline.runtime.serial import run_serial
from paceline.runtime.spec import RunSpec
from paceline.stages.dit.config import DiTConfig, GroundMemoryConfig
from paceline.stages.dit.network import save_dit
from tests.harness import ROOT
from tests.launch.test_modes import two_groups
from tests.launch.ways import torchrun
from tests.stages.conftest import random_model

FRAMES = 10
"""With a window of 2 the memory holds something from the third frame after the prompt on."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of two layers with a memory."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("weights") / "memory.safetensors"
    save_dit(random_model(DiTConfig(width=64, layers=2, heads=2, memory=GroundMemoryConfig(keys=64, values=5))), path)
    return path


def remembering(weights: Path, mode: str, schedule: str) -> WorldTopology:
    """Two groups with a memory, which the finished latents come back to."""
    made = two_groups(weights, mode).model_dump(by_alias=True, mode="json", exclude_unset=True)
    made["schedule"] = schedule
    made["context"] |= {"window": 2, "memory": {"kind": "delta"}}
    made["edges"].append({"from": "step1", "to": "step0", "carries": "latent", "via": "zmq"})
    return WorldTopology.model_validate(made)


CASES = [(mode, schedule) for mode in ContextMode for schedule in ("wavefront", "mirrored")]
QUICK = {("clean", "wavefront"), ("cascade", "mirrored")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "schedule"),
    [pytest.param(*case, marks=[] if case in QUICK else [pytest.mark.exhaustive]) for case in CASES],
)
def test_processes_and_torchrun_give_the_serial_bits(
    mode: ContextMode, schedule: str, weights: Path, tmp_path: Path
) -> None:
    topology = remembering(weights, mode.value, schedule)
    spec = RunSpec(topology, frames=FRAMES, sessions=2, seed=3, kv_hash=True)
    reference = run_serial(spec, tmp_path)
    wanted = [session.outputs_sha256 for session in reference.sessions]
    assert len(set(wanted)) == 2
    runs: list[dict[str, Any]] = [run_local(FrameWorkload(spec))]
    if schedule == "mirrored" or mode is not ContextMode.clean:
        file = tmp_path / "two.json"
        file.write_text(json.dumps(topology.model_dump(by_alias=True, mode="json", exclude_unset=True)))
        options = ("--frames", str(FRAMES), "--sessions", "2", "--seed", "3", "--kv-hash", "--quiet")
        runs.append(torchrun(str(file), 2, *options))
    for found in runs:
        assert [session["outputs_sha256"] for session in found["sessions"]] == wanted
        assert found["kv_sha256"] == reference.ranks[0].kv_sha256
        assert found["memory"]["state_bytes"] == 4 * 4 * 64 * 5
        assert found["memory"]["writes"] > 0


@pytest.mark.slow
def test_memory_recall_and_tiers_together_give_the_serial_bits(tmp_path: Path) -> None:
    """The shipped topology, with less dram, so that KV goes to nvme as well."""
    sets = [f"tiers.{group}.{key}={size}" for group in ("first", "second", "third") for key, size in SMALL.items()]
    sets += [f"tiers.{group}.nvme.path={tmp_path}" for group in ("first", "second", "third")]
    topology = load_topology(ROOT / "topologies" / "world-3-all.yaml", sets)
    assert isinstance(topology, WorldTopology)
    spec = RunSpec(topology, frames=24, sessions=1, seed=5, kv_hash=True)
    reference = run_serial(spec, tmp_path)
    found = run_local(FrameWorkload(spec))
    assert found["sessions"][0]["outputs_sha256"] == reference.sessions[0].outputs_sha256
    assert found["kv_sha256"] == reference.ranks[0].kv_sha256
    assert found["memory"] == {"state_bytes": 4 * 4 * 512 * 13, "reads": 24, "writes": 24 + 4 - 9}
    for group in ("first", "second", "third"):
        assert found["tiers"][group]["hits"]["nvme"] + found["tiers"][group]["moved_bytes"] > 0


SMALL = {"hbm": "3MiB", "dram": "1MiB"}
