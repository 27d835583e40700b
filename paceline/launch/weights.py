"""What a plan needs to know of the world model, from its header: no torch, no tensors read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paceline.launch.errors import ArgumentError
from paceline.pipeline.schema import choice
from paceline.pipeline.topology import MemorySpec, WorldTopology
from paceline.pipeline.unit import ModelShape
from paceline.stages.world_file import WorldHeader, world_of

__all__ = ["ModelFile", "check_weights", "read_model_file"]


@dataclass(frozen=True, slots=True)
class ModelFile:
    """Sizes of the model, and bytes of its weights; all zero where the workload has none."""

    shape: ModelShape
    bytes: int


def read_model_file(topology: WorldTopology) -> ModelFile:
    """The model of a topology. Raises `ArgumentError` where there is no such file, no registered world model recognises
    it, or the topology asks for what the model does not have."""
    try:
        world = world_of(topology.model.weights)
        path, header = world.path, world.header()
        files = path.rglob("*.safetensors") if path.is_dir() else [path]
        nbytes = sum(file.stat().st_size for file in files)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"model.weights: {error}") from error
    try:
        header.step_times(topology.steps)
    except ValueError as error:
        raise ArgumentError(f"model.steps: {error}; write a number that it takes") from error
    if topology.context.recall and header.view is None:
        raise ArgumentError(
            f"context.recall: {path} holds a model whose frames have no pose, so none can be recalled; write 0"
        )
    if topology.context.memory is not None:
        _check_memory(topology.context.memory, path, header)
    return ModelFile(header.shape, nbytes)


def _check_memory(spec: MemorySpec, path: Path, header: WorldHeader) -> None:
    if header.memory is None:
        raise ArgumentError(
            f"context.memory: {path} holds a model that was trained without a context memory; set model.weights to one "
            "that was trained with one, such as zoo:world-memory"
        )
    # Imported here: it needs torch, which topologies without a memory do without.
    from paceline.stages.memory import MEMORIES, make_memory

    if spec.kind not in MEMORIES:
        raise ArgumentError(f"context.memory.kind: is {spec.kind!r}; write {choice(MEMORIES.names())}")
    try:
        make_memory(spec.kind, spec.options)
    except ValueError as error:
        raise ArgumentError(f"context.memory.options: {error}; write options that the memory takes") from error


def check_weights(topology: WorldTopology) -> None:
    """Raise `ArgumentError` where a weight of the world model is NaN or infinite."""
    try:
        world_of(topology.model.weights).check()
    except (OSError, ValueError) as error:
        raise ArgumentError(f"model.weights: {error}") from error
