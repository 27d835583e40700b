"""A spec survives its way to the workers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from paceline.launch.spec_file import read_spec, write_spec
from paceline.pipeline.load import load_topology
from paceline.runtime.spec import GenerateSpec, RunSpec, SessionOptions
from paceline.stages.sampling_params import SamplingParams
from tests.launch.stand_ins import ROOT

TOPOLOGIES = sorted((ROOT / "topologies").glob("*.yaml"))


def variants(path: Path) -> list[RunSpec | GenerateSpec]:
    topology = load_topology(path)
    if topology.workload != "language":
        spec = RunSpec(topology, 5, 2, 2**63 - 1)
        return [
            spec, replace(spec, serial=True, kv_hash=True, out=Path("/some/where"), replay=Path("/a journal.jsonl"))
        ]  # fmt: skip
    text = GenerateSpec(topology, ("a", "é"), 5, 2**63 - 1, stop=("x",))
    own = tuple(SessionOptions(SamplingParams(heat, 5, 0.5, 1.5, 3), 7, ("y",), 8) for heat in (0.0, 1.0))
    return [text, replace(text, ignore_eos=True, plain=True, serial=True, park=Path("/some/where"), own=own)]


@pytest.mark.parametrize("path", TOPOLOGIES, ids=lambda path: path.stem)
def test_every_shipped_topology_comes_back_unchanged(path: Path, tmp_path: Path) -> None:
    for spec in variants(path):
        write_spec(tmp_path / "spec.json", spec)
        assert read_spec(tmp_path / "spec.json") == spec
