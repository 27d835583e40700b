"""Lower bounds on the steady period, in closed form: what no dispatch order and no simulation can beat.

Times are seconds.
"""

from __future__ import annotations

from itertools import pairwise

from paceline.pipeline.costs import Costs
from paceline.pipeline.flow import compute_chain
from paceline.pipeline.placement import Placement
from paceline.pipeline.program import ModelShape
from paceline.pipeline.topology import ContextMode, FrameTopology, Schedule, StageKind

__all__ = ["busiest_s", "loop_s", "rank_work_s", "stage_work_s"]


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
