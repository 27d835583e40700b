"""What a plan needs to know of the world model, from the header of its weights: no torch, no tensors read."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.launch.errors import ArgumentError
from paceline.pipeline.topology import Topology
from paceline.pipeline.unit import ModelShape
from paceline.stages.dit_config import DiTConfig, check_finite, find_weights

__all__ = ["ModelFile", "check_weights", "read_model_file"]

_WORLD = ("grid_y", "grid_x", "token_dim", "actions", "headings", "torus")
"""What a model has to share with the embedded world, whose shape is the default one."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """Sizes of the model, and bytes of its weights; all zero where the workload has none."""

    shape: ModelShape
    bytes: int


def read_model_file(topology: Topology) -> ModelFile:
    """The model of a topology. Raises `ArgumentError` where there is no such file, or it holds no world model, or one
    of another world than the embedded one."""
    if topology.workload != "world":
        return ModelFile(ModelShape(1, 0, 0, 0), 0)
    try:
        path = find_weights(topology.model.weights)
        config, world = DiTConfig.read(path), DiTConfig()
        for name in _WORLD:
            found, right = getattr(config, name), getattr(world, name)
            if found != right:
                raise ValueError(
                    f"{path} is of a world whose {name} is {found}, and the embedded one has {right}; train one on it"
                )
        return ModelFile(config.shape, path.stat().st_size)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"model.weights: {error}") from error


def check_weights(topology: Topology) -> None:
    """Raise `ArgumentError` where a weight of the world model is NaN or infinite."""
    if topology.workload != "world":
        return
    try:
        check_finite(find_weights(topology.model.weights))
    except (OSError, ValueError) as error:
        raise ArgumentError(f"model.weights: {error}") from error
