"""The spec of a run as JSON, as it is handed to worker processes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from paceline.launch.errors import SpecError
from paceline.pipeline.topology import FrameTopology, LanguageTopology, Topology, topology_model
from paceline.runtime.language.parked import ParkedSession
from paceline.runtime.spec import GenerateSpec, Resumed, RunSpec, SessionOptions

if TYPE_CHECKING:
    from paceline.stages.sampling_params import SamplingParams

__all__ = ["read_spec", "write_spec"]


def write_spec(path: Path, spec: RunSpec | GenerateSpec) -> None:
    """Write a spec that `read_spec` reads back, but for what only the launcher uses (a generation's `warnings`)."""
    fields = _run_fields(spec) if isinstance(spec, RunSpec) else _generate_fields(spec)
    topology = spec.topology.model_dump(mode="json", by_alias=True)
    path.write_text(json.dumps({"topology": topology, **fields}))


def read_spec(path: Path) -> RunSpec | GenerateSpec:
    """Read a spec that `write_spec` wrote. Raises `SpecError`."""
    try:
        fields = json.loads(path.read_text())
        topology = _read_topology(fields["topology"])
        return _generate_spec(topology, fields) if topology.workload == "language" else _run_spec(topology, fields)
    except (OSError, ValueError, TypeError, LookupError, RecursionError, msgspec.MsgspecError) as error:
        raise SpecError(f"{path}: is no spec of a run that can be read: {error!r}; start the run again") from error


def _read_topology(fields: Mapping[str, Any]) -> Topology:
    return topology_model(fields["workload"]).model_validate_json(json.dumps(fields), strict=True)


def _run_fields(spec: RunSpec) -> dict[str, Any]:
    return {
        "frames": spec.frames,
        "sessions": spec.sessions,
        "seed": spec.seed,
        "serial": spec.serial,
        "out": None if spec.out is None else str(spec.out),
        "replay": None if spec.replay is None else str(spec.replay),
        "kv_hash": spec.kv_hash,
    }


def _run_spec(topology: FrameTopology, fields: Mapping[str, Any]) -> RunSpec:
    return RunSpec(
        topology=topology,
        frames=msgspec.convert(fields["frames"], int),
        sessions=msgspec.convert(fields["sessions"], int),
        seed=msgspec.convert(fields["seed"], int),
        serial=msgspec.convert(fields["serial"], bool),
        out=None if fields["out"] is None else Path(fields["out"]),
        replay=None if fields["replay"] is None else Path(fields["replay"]),
        kv_hash=msgspec.convert(fields["kv_hash"], bool),
    )


def _generate_fields(spec: GenerateSpec) -> dict[str, Any]:
    return {
        "prompts": spec.prompts,
        "max_tokens": spec.max_tokens,
        "seed": spec.seed,
        "sampling": asdict(spec.sampling),
        "own": [asdict(options) for options in spec.own],
        "stop": spec.stop,
        "ignore_eos": spec.ignore_eos,
        "plain": spec.plain,
        "serial": spec.serial,
        "out": None if spec.out is None else str(spec.out),
        "park": None if spec.park is None else str(spec.park),
        "resumed": [[str(each.folder), msgspec.to_builtins(each.session)] for each in spec.resumed],
    }


def _generate_spec(topology: LanguageTopology, fields: Mapping[str, Any]) -> GenerateSpec:
    return GenerateSpec(
        topology=topology,
        prompts=tuple(msgspec.convert(fields["prompts"], list[str])),
        max_tokens=msgspec.convert(fields["max_tokens"], int),
        seed=msgspec.convert(fields["seed"], int),
        sampling=_sampling(fields["sampling"]),
        stop=tuple(msgspec.convert(fields["stop"], list[str])),
        ignore_eos=msgspec.convert(fields["ignore_eos"], bool),
        plain=msgspec.convert(fields["plain"], bool),
        serial=msgspec.convert(fields["serial"], bool),
        out=None if fields["out"] is None else Path(fields["out"]),
        park=None if fields["park"] is None else Path(fields["park"]),
        resumed=tuple(Resumed(Path(folder), msgspec.convert(it, ParkedSession)) for folder, it in fields["resumed"]),
        own=tuple(
            SessionOptions(_sampling(own["sampling"]), own["max_tokens"], tuple(own["stop"]), own["seed"])
            for own in fields["own"]
        ),
    )


def _sampling(fields: Mapping[str, Any]) -> SamplingParams:
    from paceline.pipeline.speculation.window import Coupling
    from paceline.stages.sampling_params import SamplingParams

    return SamplingParams(**{**fields, "coupling": Coupling(fields["coupling"])})
