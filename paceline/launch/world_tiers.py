"""Whether the memory tiers of a world hold what its passes read at once, before anything is started."""

from __future__ import annotations

from paceline.launch.errors import ArgumentError
from paceline.pipeline.placement import Placement
from paceline.pipeline.sizes import format_size
from paceline.pipeline.tiers import TierSpec
from paceline.pipeline.topology import StageKind, WorldTopology
from paceline.stages.world_file import world_of

__all__ = ["check_world_tiers"]

_LEAST = 2
"""Blocks of each layer that hbm has to hold."""


def check_world_tiers(topology: WorldTopology, frames: int, sessions: int) -> None:
    """Check every group's budgets: room for two blocks of each layer in hbm for each stage, and in all tiers for the
    frames that every session reads by distance. How many it recalls depends on where it goes, so a long session may
    still run out of room; `paceline plan` shows the most that it can need.

    `frames` are those of each session. Raises `ArgumentError`.
    """
    if not topology.tiers:
        return
    header = world_of(topology.model.weights).header()
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
        hbm = _LEAST * header.layers * block * len(stages)
        if spec.hbm < hbm:
            raise ArgumentError(
                f"tiers.{group}.hbm: {format_size(spec.hbm)} is too little for {_LEAST} blocks of {format_size(block)} "
                f"for each of {header.layers} layers and {len(stages)} stages; write {hbm} or more, or a smaller "
                f"block_size"
            )
        slabs = -(-header.tokens // spec.block_size)
        most = max(sum(name == stage for name, _ in streams) for stage in stages)
        needed = most * near * header.layers * slabs * block * len(stages)
        if spec.bits is None and _room(spec) < needed:
            raise ArgumentError(
                f"tiers.{group}: {format_size(_room(spec))} in all tiers is too little for {most} sessions that read "
                f"{near} frames each, {format_size(needed)}; raise dram or nvme.size, or run fewer sessions"
            )


def _room(spec: TierSpec) -> int:
    return spec.hbm + spec.dram + (spec.nvme.size if spec.nvme else 0)
