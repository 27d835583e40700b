"""What a plan needs to know of the world model, from the header of its weights: no torch, no tensors read."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.launch.errors import ArgumentError
from paceline.pipeline.topology import Topology
from paceline.pipeline.unit import ModelShape
from paceline.stages.dit_config import DiTConfig, find_weights

__all__ = ["ModelFile", "read_model_file"]


@dataclass(frozen=True, slots=True)
class ModelFile:
    """Sizes of the model, and bytes of its weights; all zero where the workload has none."""

    shape: ModelShape
    bytes: int


def read_model_file(topology: Topology) -> ModelFile:
    """The model of a topology. Raises `ArgumentError` where there is no such file or it holds no world model."""
    if topology.workload != "world":
        return ModelFile(ModelShape(1, 0, 0, 0), 0)
    try:
        path = find_weights(topology.model.weights)
        return ModelFile(DiTConfig.read(path).shape, path.stat().st_size)
    except (FileNotFoundError, ValueError) as error:
        raise ArgumentError(f"model.weights: {error}") from error
