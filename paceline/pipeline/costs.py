"""What things cost: seconds of units, messages and links, bounds on the steady period, bytes that travel and are kept.

Times are seconds here; topologies and summaries give milliseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from paceline.pipeline.context import Context
from paceline.pipeline.denoise_program import DenoiseProgram
from paceline.pipeline.flow import compute_chain, needed_kv_edges
from paceline.pipeline.placement import Placement
from paceline.pipeline.program import ModelShape, Unit, UnitKind
from paceline.pipeline.programs import program_for
from paceline.pipeline.reduced import with_short_context
from paceline.pipeline.stage import StageKind
from paceline.pipeline.topology import ContextMode, FrameTopology, Schedule, Transport, WorldEdgeSpec

__all__ = [
    "DEFAULT_LINKS",
    "Costs",
    "Link",
    "LinkLoad",
    "busiest_s",
    "costs_from",
    "in_mode",
    "kv_held_bytes",
    "link_loads",
    "loop_s",
    "rank_work_s",
    "stage_work_s",
]


@dataclass(frozen=True, slots=True)
class Link:
    """A directed way between two ranks: `latency_s` for the first byte, then `bytes_per_s`; one message at a time."""

    latency_s: float = 0.0
    bytes_per_s: float = float("inf")

    def seconds(self, nbytes: int) -> float:
        """Time for which a message occupies the link."""
        return nbytes / self.bytes_per_s


DEFAULT_LINKS: Mapping[Transport, Link] = {
    Transport.local: Link(),
    Transport.zmq: Link(100e-6, 1.2e9),
    Transport.dist: Link(250e-6, 1.5e9),
}
"""What two processes of one two-core machine reach: half of the round trips in notes/feasibility.md (ZMQ ipc and gloo,
4 bytes to 4 MiB). Fast links, such as NCCL over NVLink, are given or measured."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of everything that takes time."""

    pass_s: Mapping[str, float]
    """By stage: one pass (denoise) or one item (all others)."""
    links: Mapping[Transport, Link] = field(default_factory=lambda: DEFAULT_LINKS)
    unit_s: float = 0.0
    """Overhead of every unit on its rank."""
    message_s: float = 0.0
    """Work of the sender's rank, and again of the receiver's, for a message between two ranks."""
    row_share: float = 1.0
    """Cost of each further row of a joint forward, as a share of the first one: 1 where compute is the limit."""

    def seconds(self, units: Sequence[Unit], layers: int) -> float:
        """Time to run units together (one, or equal ones of several sessions), without their messages."""
        unit = units[0]
        cost = self.pass_s.get(unit.stage, 0.0)
        if unit.kind in (UnitKind.receive, UnitKind.drain, UnitKind.discard):
            return self.unit_s
        if unit.kind is UnitKind.layers:
            start, stop = unit.layers
            rows = sum(len(other.rows) for other in units)
            return self.unit_s + cost * (stop - start) / layers * (1 + (rows - 1) * self.row_share)
        return self.unit_s + cost * len(units)

    def link(self, transport: Transport, same_rank: bool) -> Link:
        """The link of an edge; between stages on one rank every edge is local."""
        return self.links.get(Transport.local if same_rank else transport, Link())


def costs_from(topology: FrameTopology, measured: Mapping[str, object] | None = None) -> Costs:
    """Costs as the topology gives them (`ms` of its stages) or, where `measured` is the summary of a run, from its
    `stage_ms`: milliseconds of one pass or item by stage.

    Stages that were not measured keep the `ms` of the topology. Raises `ValueError` where `measured` has no usable
    `stage_ms`.
    """
    pass_s = {name: stage.ms / 1000 for name, stage in topology.stages.items()}
    if measured is not None:
        stage_ms = measured.get("stage_ms")
        if not isinstance(stage_ms, Mapping):
            raise ValueError("the measured costs have no 'stage_ms'; give the summary.json of a run (--out DIR)")
        for name, value in stage_ms.items():
            if name not in pass_s:
                raise ValueError(
                    f"measured stage {name!r} is not in topology {topology.name}; it has {', '.join(pass_s)}"
                )
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ValueError(f"stage_ms of {name} is {value!r}; it must be milliseconds, 0 or more")
            pass_s[name] = value / 1000
    return Costs(pass_s)


def stage_work_s(topology: FrameTopology, costs: Costs, stage: str) -> float:
    """Compute of a stage for one frame of one session: all its passes, or its one item."""
    cost = costs.pass_s.get(stage, 0.0)
    if topology.stages[stage].kind is not StageKind.denoise:
        return cost
    steps = topology.stage_steps(stage)
    passes = len(steps)
    if topology.context.mode is ContextMode.matched and topology.last_level in steps:
        passes -= 1
    if topology.schedule is Schedule.batched and passes:
        return cost * (1 + (passes - 1) * costs.row_share)
    return cost * passes


def rank_work_s(topology: FrameTopology, costs: Costs, sessions: int) -> list[float]:
    """By rank: compute for one frame of every session. With `schedule: serial` one rank does all."""
    placement = Placement(topology)
    work = [0.0] * placement.world_size
    for stage in topology.stages:
        for session in range(sessions):
            rank = 0 if topology.schedule is Schedule.serial else placement.rank_of(stage, session)
            work[rank] += stage_work_s(topology, costs, stage)
    return work


def busiest_s(topology: FrameTopology, costs: Costs, sessions: int) -> float:
    """The busiest rank's work for one frame of every session. With a stage on each rank: max_s t_s for `wavefront` and
    one session, max_s (t_s + t_{S-1-s}) for `mirrored` and a pair (DualPipe), the sum of all for `serial`."""
    return max(rank_work_s(topology, costs, sessions))


def loop_s(topology: FrameTopology, shape: ModelShape, costs: Costs) -> float:
    """The longest loop through latents forward and KV back, which holds up one session even if all ranks are free.

    clean: all passes of a frame, one after another. cascade, between neighbours a and b = a + 1 on different stages:
    frame T leaves a, b makes the KV of its first layer (or run of layers, where an item holds several), frame T+1
    starts at a; at the other end b makes the last KV and a has one layer left: t_a + t_b / L or t_b + t_a / L, and both
    hops. Other sessions can fill what this leaves idle. staggered: the same loop with whole passes, over two slots.
    matched: none."""
    mode = topology.context.mode
    if not topology.reads_context or topology.schedule in (Schedule.serial, Schedule.batched):
        return 0.0
    chain = compute_chain(topology)
    if mode is ContextMode.clean:
        return sum(stage_work_s(topology, costs, stage) for stage in chain)
    if mode is ContextMode.matched:
        return 0.0
    longest = 0.0
    for early, late in pairwise(chain):
        run = shape.layers
        if mode is ContextMode.cascade:
            runs = [e.layers for e in topology.edges if (e.source, e.target, e.carries) == (late, early, "kv")]
            run = min([shape.layers, *runs])
        forward = _hop_s(topology, costs, early, late, "item", shape.latent_bytes)
        back = _hop_s(topology, costs, late, early, "kv", run * shape.kv_layer_bytes)
        a, b = costs.pass_s.get(early, 0.0), costs.pass_s.get(late, 0.0)
        if mode is ContextMode.cascade:
            loop = max(a, b) + min(a, b) * run / shape.layers + forward + back
        else:
            loop = (a + b + forward + back) / 2
        longest = max(longest, loop)
    return longest


def _hop_s(topology: FrameTopology, costs: Costs, source: str, target: str, carries: str, nbytes: int) -> float:
    """Time of a message between two stages, or 0 where no edge joins them or they share a rank."""
    placement = Placement(topology)
    for edge in topology.edges:
        if (edge.source, edge.target, edge.carries) == (source, target, carries):
            same = placement.rank_of(source, 0) == placement.rank_of(target, 0)
            link = costs.link(edge.via, same)
            return link.latency_s + link.seconds(nbytes)
    return 0.0


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
        edges.append(known.get((source, target)) or WorldEdgeSpec.model_validate(spec))
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
