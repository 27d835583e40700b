"""A run spec as JSON, as it is handed to worker processes."""

from __future__ import annotations

import json
from pathlib import Path

from paceline.pipeline.topology import Topology
from paceline.runtime.spec import RunSpec

__all__ = ["read_spec", "write_spec"]


def write_spec(path: Path, spec: RunSpec) -> None:
    """Write a spec that `read_spec` reads back unchanged."""
    fields = {
        "topology": spec.topology.model_dump(mode="json", by_alias=True),
        "frames": spec.frames,
        "sessions": spec.sessions,
        "seed": spec.seed,
        "serial": spec.serial,
        "out": None if spec.out is None else str(spec.out),
        "replay": None if spec.replay is None else str(spec.replay),
        "kv_hash": spec.kv_hash,
    }
    path.write_text(json.dumps(fields))


def read_spec(path: Path) -> RunSpec:
    """Read a spec that `write_spec` wrote."""
    fields = json.loads(path.read_text())
    return RunSpec(
        topology=Topology.model_validate_json(json.dumps(fields["topology"]), strict=True),
        frames=fields["frames"],
        sessions=fields["sessions"],
        seed=fields["seed"],
        serial=fields["serial"],
        out=None if fields["out"] is None else Path(fields["out"]),
        replay=None if fields["replay"] is None else Path(fields["replay"]),
        kv_hash=fields["kv_hash"],
    )
