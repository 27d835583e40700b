"""What a plan needs to know of the world model, from the header of its weights: no torch, no tensors read."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import msgspec

from paceline.launch.errors import ArgumentError
from paceline.pipeline.program import ModelShape
from paceline.pipeline.topology import Topology

__all__ = ["ModelFile", "read_model_file"]

_ZOO = "zoo:"
_LARGEST_HEADER = 100 * 2**20
"""Safetensors' own limit."""
_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class ModelFile:
    """Sizes of the model, and bytes of its weights; all zero where the workload has none."""

    shape: ModelShape
    bytes: int


class _Config(msgspec.Struct):
    grid_y: int
    grid_x: int
    token_dim: int
    width: int
    layers: int


def read_model_file(topology: Topology) -> ModelFile:
    """The model of a topology. Raises `ArgumentError` where there is no such file or it holds no world model."""
    if topology.workload != "world":
        return ModelFile(ModelShape(1, 0, 0, 0), 0)
    path = _find(topology.model.weights)
    config = _read_config(path)
    tokens = config.grid_y * config.grid_x
    values = tokens * config.token_dim
    kv_layer = 2 * tokens * config.width * _FLOAT_BYTES
    # A latent is floats, a finished frame bytes.
    return ModelFile(ModelShape(config.layers, _FLOAT_BYTES * values, kv_layer, values), path.stat().st_size)


def _find(name: str) -> Path:
    """The file behind `zoo:NAME` or a path."""
    path = Path(name)
    if name.startswith(_ZOO):
        spec = importlib.util.find_spec("zoo")
        folders = [] if spec is None else list(spec.submodule_search_locations or [])
        known = {file.parent.name: file for folder in folders for file in Path(folder).glob("*/weights.safetensors")}
        if name.removeprefix(_ZOO) not in known:
            names = ", ".join(_ZOO + name for name in sorted(known)) or "none"
            raise ArgumentError(f"model.weights: there is no embedded model {name}; known: {names}")
        path = known[name.removeprefix(_ZOO)]
    if not path.is_file():
        raise ArgumentError(f"model.weights: there is no file {name}; give a .safetensors file or zoo:world")
    return path


def _read_config(path: Path) -> _Config:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _LARGEST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        return msgspec.json.decode(header["__metadata__"]["dit_config"], type=_Config)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        right = "give weights that zoo.world.train wrote"
        raise ArgumentError(f"model.weights: {path} holds no world model ({error}); {right}") from error
