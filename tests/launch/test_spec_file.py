"""A spec survives its way to the workers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from paceline.launch.spec_file import read_spec, write_spec
from paceline.pipeline.load import load_topology
from paceline.runtime.spec import RunSpec
from tests.launch.stand_ins import ROOT

TOPOLOGIES = sorted((ROOT / "topologies").glob("*.yaml"))


@pytest.mark.parametrize("path", TOPOLOGIES, ids=lambda path: path.stem)
def test_every_shipped_topology_comes_back_unchanged(path: Path, tmp_path: Path) -> None:
    spec = RunSpec(load_topology(path), 5, 2, 2**63 - 1)
    for variant in (
        spec,
        replace(spec, serial=True, kv_hash=True, out=Path("/some/where"), replay=Path("/a journal.jsonl")),
    ):
        write_spec(tmp_path / "spec.json", variant)
        assert read_spec(tmp_path / "spec.json") == variant
