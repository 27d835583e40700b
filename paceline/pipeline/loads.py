"""What has to travel and to be kept: bytes per slot on every link in each context mode, KV held by every rank."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from paceline.pipeline.bounds import busiest_s
from paceline.pipeline.context import Context
from paceline.pipeline.costs import Costs
from paceline.pipeline.denoise_program import DenoiseProgram
from paceline.pipeline.flow import needed_kv_edges
from paceline.pipeline.placement import Placement
from paceline.pipeline.program import ModelShape
from paceline.pipeline.programs import program_for
from paceline.pipeline.reduced import with_short_context
from paceline.pipeline.topology import ContextMode, EdgeSpec, FrameTopology, Schedule, StageKind, Transport

__all__ = ["LinkLoad", "in_mode", "kv_held_bytes", "link_loads"]


@dataclass(frozen=True, slots=True)
class LinkLoad:
    """What one directed link between two ranks carries in the steady state. `slot_s` is the time it has for that: the
    deadline, or where there is none (or it can't be met) the work of the busiest rank."""

    mode: ContextMode
    source: int
    target: int
    via: Transport
    bytes_per_slot: int
    slot_s: float
    carries_bytes_per_s: float

    @property
    def bytes_per_s(self) -> float:
        """The rate that is needed."""
        if self.slot_s > 0:
            return self.bytes_per_slot / self.slot_s
        return float("inf") if self.bytes_per_slot else 0.0

    @property
    def fits(self) -> bool:
        """Whether the link can carry it. Without any cost of compute there is no slot, and nothing to compare."""
        return self.slot_s <= 0 or self.bytes_per_s <= self.carries_bytes_per_s


def in_mode(topology: FrameTopology, mode: ContextMode) -> FrameTopology:
    """The same placement in another context mode, with the KV edges that it needs; new ones travel like the first edge
    between ranks."""
    variant = topology.with_context(topology.context.model_copy(update={"mode": mode}))
    known = {(edge.source, edge.target): edge for edge in topology.edges if edge.carries == "kv"}
    far = [*known.values(), *topology.edges]
    via = next((edge.via for edge in far if edge.via is not Transport.local), Transport.local)
    edges = [edge for edge in topology.edges if edge.carries != "kv"]
    for source, target in needed_kv_edges(variant):
        spec = {"from": source, "to": target, "carries": "kv", "via": via, "inflight": 2 * topology.steps + 64}
        edges.append(known.get((source, target)) or EdgeSpec.model_validate(spec))
    return variant.model_copy(update={"edges": tuple(edges)})


def link_loads(topology: FrameTopology, shape: ModelShape, costs: Costs, sessions: int) -> list[LinkLoad]:
    """Loads of all links between ranks, in one context mode: the topology's own."""
    placement = Placement(topology)
    busiest = busiest_s(topology, costs, sessions)
    slot_s = max(busiest, (topology.deadline_ms or 0.0) / 1000)
    loads: Counter[tuple[int, int, Transport]] = Counter()
    if topology.schedule is not Schedule.serial:
        for index, nbytes in _bytes_per_frame(topology, shape).items():
            edge = topology.edges[index]
            for session in range(sessions):
                source, target = placement.rank_of(edge.source, session), placement.rank_of(edge.target, session)
                if source != target:
                    loads[source, target, edge.via] += nbytes
    return [
        LinkLoad(topology.context.mode, source, target, via, nbytes, slot_s, costs.link(via, False).bytes_per_s)
        for (source, target, via), nbytes in sorted(loads.items())
    ]


def _bytes_per_frame(topology: FrameTopology, shape: ModelShape) -> Counter[int]:
    """By edge: bytes that a frame of one session gives in the steady state, as the programs count them."""
    # Flows the same, and settles sooner.
    brief = topology.context.model_copy(update={"prompt": 1})
    topology = with_short_context(topology.with_context(brief))
    reach = _reach(topology)
    probe = topology.prompt_frames + reach
    found: Counter[int] = Counter()
    for stage in topology.stages:
        for unit in program_for(topology, shape, stage, 0).units(stop=probe + reach + 1):
            for give in unit.gives:
                if give.position == probe:
                    found[give.edge] += give.nbytes
    return found


def _reach(topology: FrameTopology) -> int:
    """Frames after which a stage is in its steady state."""
    near = max(topology.context.window, topology.steps if topology.context.recall else 0)
    return near + topology.context.sinks + topology.steps + 2


def _recallable(context: Context, shape: ModelShape, frames: int) -> int:
    """Older frames that are kept for recall at the end of a session, beside those that `arrivals` names."""
    if not context.recall:
        return 0
    older = max(context.prompt + frames - context.reach - context.sinks - 2, 0)
    return older if shape.view is None else min(older, shape.view.torus**2)


def kv_held_bytes(topology: FrameTopology, shape: ModelShape, sessions: int, frames: int = 0) -> list[int]:
    """By rank: KV that its denoise stages hold in the steady state, which is what the passes of one slot (of one frame,
    in mode `clean`) read and write. With `context.recall`, also the older frames of sessions of `frames` frames that
    all look from different places."""
    placement = Placement(topology)
    held = [0] * placement.world_size
    reach = _reach(topology)
    for stage, spec in topology.stages.items():
        if spec.kind is not StageKind.denoise:
            continue
        program = program_for(topology, shape, stage, 0)
        if not isinstance(program, DenoiseProgram):
            continue
        entries: set[tuple[int, int]] = set()
        for step in program.steps:
            frame = program.prompt + reach - (0 if topology.context.mode is ContextMode.clean else step)
            entries.add((frame, step))
            entries |= {(read.frame, read.level) for read in program.context.arrivals(frame, step)}
            level = step if topology.context.mode is ContextMode.matched else topology.steps
            entries |= {(-older, level) for older in range(1, _recallable(program.context, shape, frames) + 1)}
        for session in range(sessions):
            rank = 0 if topology.schedule is Schedule.serial else placement.rank_of(stage, session)
            held[rank] += len(entries) * shape.layers * shape.kv_layer_bytes
    return held
