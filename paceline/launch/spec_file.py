"""A run spec as JSON, as it is handed to worker processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from paceline.launch.errors import SpecError
from paceline.pipeline.topology import Topology
from paceline.runtime.spec import RunSpec

__all__ = ["read_spec", "reading_spec", "write_spec"]


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
    """Read a spec that `write_spec` wrote. Raises `SpecError`."""
    with reading_spec(path):
        fields = json.loads(path.read_text())
        return RunSpec(
            topology=Topology.model_validate_json(json.dumps(fields["topology"]), strict=True),
            frames=msgspec.convert(fields["frames"], int),
            sessions=msgspec.convert(fields["sessions"], int),
            seed=msgspec.convert(fields["seed"], int),
            serial=msgspec.convert(fields["serial"], bool),
            out=None if fields["out"] is None else Path(fields["out"]),
            replay=None if fields["replay"] is None else Path(fields["replay"]),
            kv_hash=msgspec.convert(fields["kv_hash"], bool),
        )


@contextmanager
def reading_spec(path: Path) -> Iterator[None]:
    """Turn what a damaged spec makes its reader raise into a `SpecError`."""
    try:
        yield
    except (OSError, ValueError, TypeError, LookupError, RecursionError, msgspec.MsgspecError) as error:
        raise SpecError(f"{path}: is no spec of a run that can be read: {error!r}; start the run again") from error
