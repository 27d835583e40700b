"""What is checked before anything is started: keys, policies, the drafter, the world model and the tiers for its KV."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paceline.launch.errors import ArgumentError
from paceline.pipeline.placement import Placement, memories
from paceline.pipeline.schema import choice
from paceline.pipeline.speculation.settings import NO_DRAFTER
from paceline.pipeline.stage import StageKind
from paceline.pipeline.strict_model import format_size
from paceline.pipeline.topology import LanguageTopology, MemorySpec, Topology, WorldTopology
from paceline.pipeline.unit import ModelShape
from paceline.stages.world_file import WorldHeader, world_of

__all__ = [
    "ModelFile",
    "check_curve",
    "check_drafter",
    "check_policies",
    "check_weights",
    "check_world_tiers",
    "read_model_file",
]


def check_curve(topology: Topology) -> None:
    """Raise `ArgumentError` where the CURVE files that a topology names are missing, unfit or open to others."""
    curve = topology.network.curve
    if curve is None:
        return
    # Imported here: most topologies need no keys.
    from paceline.runtime.auth import load_curve
    from paceline.runtime.errors import RendezvousError

    try:
        load_curve(curve)
    except RendezvousError as error:
        raise ArgumentError(str(error)) from error


def check_policies(topology: Topology) -> None:
    """Raise `ArgumentError` where memory tiers name a policy that there is not, or options that it does not take."""
    if not topology.tiers:
        return
    # Imported here: it needs NumPy, and perhaps the packages of others.
    from paceline.tiers.policies import ORACLE, POLICIES, make_policy

    for group, spec in topology.tiers.items():
        if spec.policy == ORACLE or spec.policy not in POLICIES:
            online = [name for name in POLICIES if name != ORACLE]
            raise ArgumentError(f"tiers.{group}.policy: is {spec.policy!r}; write {choice(online)}")
        try:
            make_policy(spec.policy, spec.options, {"columns": 1})
        except ValueError as error:
            raise ArgumentError(f"tiers.{group}.options: {error}; write options that the policy takes") from error


def check_drafter(topology: LanguageTopology) -> None:
    """Raise `ArgumentError` where there is no drafter of the topology's name, it does not take the options, or it can't
    do what the topology asks of it."""
    # Imported here: the drafter may be from another package.
    from paceline.stages.lm.drafter import DRAFTERS, make_drafter

    spec = topology.speculation
    if spec.drafter != NO_DRAFTER and spec.drafter not in DRAFTERS:
        known = [*DRAFTERS, NO_DRAFTER]
        raise ArgumentError(f"speculation.drafter: is {spec.drafter!r}; write {choice(known)}")
    try:
        drafter = make_drafter(spec)
    except ValueError as error:
        raise ArgumentError(f"speculation.options: {error}; write options that the drafter takes") from error
    if drafter is not None and not drafter.can_hedge and isinstance(spec.hedge, int) and spec.hedge > 0:
        wrong = f"the drafter {spec.drafter} knows no second choice to hedge with"
        raise ArgumentError(f"speculation.hedge: {wrong}; write hedge: 0 or auto")
    group = topology.stages[topology.stage_of(StageKind.draft)].group
    if group in topology.tiers and (drafter is None or not drafter.has_model):
        wrong = f"a drafter of kind {spec.drafter} holds no KV"
        raise ArgumentError(f"tiers.{group}: {wrong}; remove them or write speculation.drafter: model")


@dataclass(frozen=True, slots=True)
class ModelFile:
    """Sizes of the model, and bytes of its weights; all zero where the workload has none."""

    shape: ModelShape
    bytes: int
    state_bytes: int = 0
    """Of the context memory of a session; 0 where the topology has none"""


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
    memory = topology.context.memory
    return ModelFile(header.shape, nbytes, 0 if memory is None else _state_bytes(memory, path, header))


def _state_bytes(spec: MemorySpec, path: Path, header: WorldHeader) -> int:
    """Bytes of a session's memory. Raises `ArgumentError` where the model has none, or there is no such memory."""
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
        return make_memory(spec.kind, spec.options).state_bytes(header.memory)
    except ValueError as error:
        raise ArgumentError(f"context.memory.options: {error}; write options that the memory takes") from error


def check_weights(topology: WorldTopology) -> None:
    """Raise `ArgumentError` where a weight of the world model is NaN or infinite."""
    try:
        world_of(topology.model.weights).check()
    except (OSError, ValueError) as error:
        raise ArgumentError(f"model.weights: {error}") from error


_LEAST = 2
"""Blocks of each layer that hbm has to hold."""


def check_world_tiers(topology: WorldTopology, frames: int, sessions: int) -> None:
    """Check every group's budgets: room in hbm for the context memories of the sessions and for two blocks of each
    layer for each stage, and in all tiers for the frames that every session reads by distance. How many it recalls
    depends on where it goes, so a long session may still run out of room; `paceline plan` shows the most that it can
    need.

    `frames` are those of each session. Raises `ArgumentError`.
    """
    if not topology.tiers:
        return
    world, memory = world_of(topology.model.weights), topology.context.memory
    header = world.header()
    state_bytes = 0 if memory is None else _state_bytes(memory, world.path, header)
    placement = Placement(topology)
    context = topology.context
    near = min(context.prompt + frames, context.sinks + context.window + 1)
    for rank in range(placement.world_size):
        group = placement.group_of_rank(rank)
        streams = [s for s in placement.streams(rank, sessions) if topology.stages[s[0]].kind is StageKind.denoise]
        stages = {stage for stage, _ in streams}
        if group not in topology.tiers or not stages:
            continue
        spec = topology.tiers[group]
        block = header.kv_layer_bytes // header.tokens * spec.block_size
        states = state_bytes * memories(topology, streams)
        hbm = _LEAST * header.layers * block * len(stages) + states
        if spec.hbm < hbm:
            also = f", and for context memories of {format_size(states)}" if states else ""
            raise ArgumentError(
                f"tiers.{group}.hbm: {format_size(spec.hbm)} is too little for {_LEAST} blocks of {format_size(block)} "
                f"for each of {header.layers} layers and {len(stages)} stages{also}; write {hbm} or more, or a smaller "
                f"block_size"
            )
        slabs = -(-header.tokens // spec.block_size)
        most = max(sum(name == stage for name, _ in streams) for stage in stages)
        needed = most * near * header.layers * slabs * block * len(stages)
        room = spec.hbm - states + spec.dram + (spec.nvme.size if spec.nvme else 0)
        if spec.bits is None and room < needed:
            raise ArgumentError(
                f"tiers.{group}: {format_size(room)} in all tiers is too little for {most} sessions that read "
                f"{near} frames each, {format_size(needed)}; raise dram or nvme.size, or run fewer sessions"
            )
