"""A generate spec as JSON, as it is handed to worker processes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from paceline.launch.spec_file import reading_spec
from paceline.pipeline.speculation.window import Coupling
from paceline.pipeline.topology import Topology
from paceline.runtime.language.parked import ParkedSession
from paceline.runtime.language.spec import GenerateSpec, Resumed, SessionOptions
from paceline.stages.sampling_params import SamplingParams

__all__ = ["generate_spec_of", "write_generate_spec"]


def write_generate_spec(path: Path, spec: GenerateSpec) -> None:
    """Write a spec that `generate_spec_of` understands."""
    fields = {
        "topology": spec.topology.model_dump(mode="json", by_alias=True),
        "prompts": spec.prompts,
        "max_tokens": spec.max_tokens,
        "seed": spec.seed,
        "sampling": asdict(spec.sampling),
        "own": [asdict(options) for options in spec.own],
        "stop": spec.stop,
        "ignore_eos": spec.ignore_eos,
        "plain": spec.plain,
        "serial": spec.serial,
        "park": None if spec.park is None else str(spec.park),
        "resumed": [[str(each.folder), msgspec.to_builtins(each.session)] for each in spec.resumed],
    }
    path.write_text(json.dumps(fields))


def generate_spec_of(fields: Mapping[str, Any]) -> GenerateSpec:
    """The spec that was written. Raises `SpecError`."""
    with reading_spec(Path("spec.json")):
        return _spec_of(fields)


def _spec_of(fields: Mapping[str, Any]) -> GenerateSpec:
    return GenerateSpec(
        topology=Topology.model_validate_json(json.dumps(fields["topology"]), strict=True),
        prompts=tuple(msgspec.convert(fields["prompts"], list[str])),
        max_tokens=msgspec.convert(fields["max_tokens"], int),
        seed=msgspec.convert(fields["seed"], int),
        sampling=_sampling(fields["sampling"]),
        stop=tuple(msgspec.convert(fields["stop"], list[str])),
        ignore_eos=msgspec.convert(fields["ignore_eos"], bool),
        plain=msgspec.convert(fields["plain"], bool),
        serial=msgspec.convert(fields["serial"], bool),
        park=None if fields["park"] is None else Path(fields["park"]),
        resumed=tuple(Resumed(Path(folder), msgspec.convert(it, ParkedSession)) for folder, it in fields["resumed"]),
        own=tuple(
            SessionOptions(_sampling(own["sampling"]), own["max_tokens"], tuple(own["stop"]), own["seed"])
            for own in fields["own"]
        ),
    )


def _sampling(fields: Mapping[str, Any]) -> SamplingParams:
    return SamplingParams(**{**fields, "coupling": Coupling(fields["coupling"])})
