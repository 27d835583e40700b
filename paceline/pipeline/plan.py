"""What a topology will do before anything runs: placement, period, bubble, latency, traffic, memory, liveness.

Times are seconds, sizes bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from paceline.pipeline.costs import Costs, LinkLoad, busiest_s, in_mode, kv_held_bytes, link_loads, loop_s, rank_work_s
from paceline.pipeline.flow import compute_chain
from paceline.pipeline.liveness import Deadlock, check_liveness
from paceline.pipeline.placement import Placement, memories
from paceline.pipeline.program import ModelShape, Row, UnitKind
from paceline.pipeline.programs import program_for
from paceline.pipeline.simulate import simulate
from paceline.pipeline.simulation import Simulation
from paceline.pipeline.stage import StageKind
from paceline.pipeline.strict_model import format_size
from paceline.pipeline.topology import ContextMode, FrameTopology, Schedule

__all__ = ["MOST_SIMULATED", "Cell", "Plan", "RankPlan", "plan"]

MOST_SIMULATED = 25_000
"""Frames times sessions times stages (or edges, where there are more) of a simulation: a few seconds of it."""
_BRIEF = 12_000
"""What a plan simulates unless it is asked for more, as long as that leaves `_LEAST_FRAMES`."""
_LEAST_FRAMES = 12
_LONGEST_WINDOW = 64
"""Longer windows change nothing of what flows (see `reduced.py`)."""

_WIDE = 1 << 20
_GAIN = 0.02
"""A period that is shorter by this share is worth a warning."""


@dataclass(frozen=True, slots=True)
class RankPlan:
    """One rank: what it computes, and how busy and how full it gets."""

    rank: int
    group: str
    device: str
    streams: tuple[tuple[str, int], ...]
    """(stage, session)"""
    work_s: float
    """Compute for one frame of every session"""
    bubble: float
    """Share of the steady time that it is idle, 0..1, as simulated; NaN where the topology deadlocks"""
    weights_bytes: int
    kv_bytes: int
    memory_bytes: int
    """Of the context memories of the sessions"""


@dataclass(frozen=True, slots=True)
class Cell:
    """What a rank does in a slot."""

    session: int
    row: Row


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole plan. Everything simulated is NaN where the topology deadlocks."""

    topology: FrameTopology
    sessions: int
    frames: int
    ranks: tuple[RankPlan, ...]
    busiest_s: float
    """Bound on the period: the busiest rank's work for one frame of every session"""
    loop_s: float
    """Bound on the period of one session: latents forward and KV back"""
    period_s: float
    """Simulated time between frames of one session"""
    frames_per_second: float
    """Simulated, all sessions together"""
    latency_p50_s: float
    """Simulated time from action to frame, with actions at the deadline's pace or, where the pipeline is slower or
    there is no deadline, at its own"""
    latency_p99_s: float
    queued_latency_s: float
    """Median of the same where the source sends whenever it has credit, so that frames queue on the edges"""
    loads: dict[ContextMode, tuple[LinkLoad, ...]]
    timetable: tuple[tuple[tuple[Cell, ...], ...], ...]
    """By slot and rank"""
    deadlock: Deadlock | None
    warnings: tuple[str, ...]
    simulation: Simulation | None

    @property
    def bound_s(self) -> float:
        """The period by formula: no schedule can be faster."""
        return max(self.busiest_s, self.loop_s)


def plan(
    topology: FrameTopology,
    shape: ModelShape,
    costs: Costs,
    *,
    sessions: int | None = None,
    frames: int | None = None,
    weights_bytes: int = 0,
    state_bytes: int = 0,
    slots: int = 12,
) -> Plan:
    """Plan a valid topology.

    `sessions` defaults to as many as give every rank work (a pair for each lane where the schedule is mirrored),
    `frames` of the simulation to enough for a steady state, both to less where the simulation would be long.
    `weights_bytes` is the size of the world model, `state_bytes` that of the context memory of a session, `slots` the
    length of the timetable. Raises `ValueError` where more is asked for than `MOST_SIMULATED`.
    """
    size = max(len(topology.stages), len(topology.edges))
    sessions = sessions or min(_lanes(topology), max(_BRIEF // (size * _LEAST_FRAMES), 1))
    usual = 24 + len(topology.stages) + min(topology.context.window, _LONGEST_WINDOW)
    frames = frames or max(min(usual, _BRIEF // (size * sessions)), min(usual, _LEAST_FRAMES))
    if frames * sessions * size > MOST_SIMULATED:
        raise ValueError(
            f"{frames} frames of {sessions} sessions over {size} stages or edges are {frames * sessions * size} items "
            f"to simulate, and a plan takes at most {MOST_SIMULATED}; ask for fewer frames or sessions"
        )
    deadlock = check_liveness(topology, shape)
    simulation = paced = None
    if deadlock is None:
        simulation = simulate(topology, shape, costs, frames=frames, sessions=sessions)
        # A single frame has no period.
        period_s = simulation.period_s if math.isfinite(simulation.period_s) else 0.0
        pace_s = max(period_s, (topology.deadline_ms or 0.0) / 1000)
        paced = simulate(topology, shape, costs, frames=frames, sessions=sessions, pace_s=pace_s)
    loads = {mode: tuple(link_loads(in_mode(topology, mode), shape, costs, sessions)) for mode in topology.modes}
    loads[topology.context.mode] = tuple(link_loads(topology, shape, costs, sessions))
    made = Plan(
        topology=topology,
        sessions=sessions,
        frames=frames,
        ranks=_ranks(topology, shape, costs, sessions, frames, weights_bytes, state_bytes, simulation),
        busiest_s=busiest_s(topology, costs, sessions),
        loop_s=loop_s(topology, shape, costs),
        period_s=simulation.period_s if simulation else math.nan,
        frames_per_second=simulation.frames_per_second if simulation else math.nan,
        latency_p50_s=paced.latency_s(0.5) if paced else math.nan,
        latency_p99_s=paced.latency_s(0.99) if paced else math.nan,
        queued_latency_s=simulation.latency_s(0.5) if simulation else math.nan,
        loads=loads,
        timetable=_timetable(topology, shape, sessions, slots),
        deadlock=deadlock,
        warnings=(),
        simulation=simulation,
    )
    warnings = [
        *_cost_warnings(topology, costs),
        *_link_warnings(made),
        *_pace_warnings(made),
        *_credit_warnings(made, shape, costs),
    ]
    return replace(made, warnings=tuple(warnings))


def _lanes(topology: FrameTopology) -> int:
    kinds = (StageKind.denoise, StageKind.sleep)
    groups = {stage.group for stage in topology.stages.values() if stage.kind in kinds}
    ranks = max((topology.groups[group].ranks for group in groups), default=1)
    return ranks * (2 if topology.schedule is Schedule.mirrored else 1)


def _ranks(
    topology: FrameTopology,
    shape: ModelShape,
    costs: Costs,
    sessions: int,
    frames: int,
    weights_bytes: int,
    state_bytes: int,
    simulation: Simulation | None,
) -> tuple[RankPlan, ...]:
    placement = Placement(topology)
    work = rank_work_s(topology, costs, sessions)
    kv = kv_held_bytes(topology, shape, sessions, frames)
    ranks = []
    groups = [group for group in topology.groups for _ in placement.ranks(group)]
    for rank, (group, hosted) in enumerate(zip(groups, placement.all_streams(sessions), strict=True)):
        streams = tuple(hosted)
        model = any(topology.stages[stage].kind is StageKind.denoise for stage, _ in streams)
        bubble = math.nan
        if simulation is not None:
            bubble = simulation.bubble(rank) if rank < len(simulation.ranks) else 1.0
        ranks.append(
            RankPlan(
                rank,
                group,
                topology.groups[group].device,
                streams,
                work[rank],
                bubble,
                weights_bytes * model,
                kv[rank],
                state_bytes * memories(topology, streams),
            )
        )
    return tuple(ranks)


def _timetable(
    topology: FrameTopology, shape: ModelShape, sessions: int, slots: int
) -> tuple[tuple[tuple[Cell, ...], ...], ...]:
    """The first slots of the lock-step schedule. Sleepers have no slots of their own: the n-th works on frame
    slot - n."""
    placement = Placement(topology)
    chain = compute_chain(topology)
    cells: dict[tuple[int, int], list[Cell]] = {}
    for stage in chain:
        for session in range(sessions):
            rank = placement.rank_of(stage, session)
            program = program_for(topology, shape, stage, session)
            for unit in program.units(stop=program.prompt + slots):
                if unit.kind is UnitKind.layers and unit.layers[0] == 0:
                    cells.setdefault((unit.slot, rank), []).extend(Cell(session, row) for row in unit.rows)
                elif unit.kind is UnitKind.sleep and not program.ended(unit.frame):
                    place = chain.index(stage)
                    cells.setdefault((unit.frame + place, rank), []).append(Cell(session, Row(unit.frame, place)))
    first = min((slot for slot, _ in cells), default=0)
    return tuple(
        tuple(tuple(cells.get((slot, rank), ())) for rank in range(placement.world_size))
        for slot in range(first, first + slots)
    )


# -- warnings ----------------------------------------------------------------------------------------------------------


def _cost_warnings(topology: FrameTopology, costs: Costs) -> list[str]:
    stages = [name for name, stage in topology.stages.items() if stage.kind is StageKind.denoise]
    unknown = [name for name in stages if not costs.pass_s.get(name)]
    if not unknown:
        return []
    fix = "write ms in the stage, or plan with the summary.json of a run"
    return [f"{', '.join(unknown)}: no cost of a pass is known, so times here are those of the transfers alone; {fix}"]


def _link_warnings(made: Plan) -> list[str]:
    placement = Placement(made.topology)
    found = []
    for load in made.loads[made.topology.context.mode]:
        if not load.fits:
            ends = [placement.group_of_rank(load.source), placement.group_of_rank(load.target)]
            if made.topology.world_size > len(made.topology.groups):
                ends = [f"{ends[0]} (rank {load.source})", f"{ends[1]} (rank {load.target})"]
            found.append(
                f"group {ends[0]} -> {ends[1]} must carry {format_size(load.bytes_per_slot)} per "
                f"{load.slot_s * 1000:.3g} ms slot = {load.bytes_per_s / 1e9:.3g} GB/s, {load.via} gives "
                f"{load.carries_bytes_per_s / 1e9:.3g}"
            )
    return found


def _pace_warnings(made: Plan) -> list[str]:
    deadline = made.topology.deadline_ms
    if deadline is None or not made.period_s > deadline / 1000:
        return []
    took = f"{made.period_s * 1000:.3g} ms"
    return [f"a frame takes {took} but is due every {deadline:g} ms; on_late is {made.topology.on_late}"]


def _credit_warnings(made: Plan, shape: ModelShape, costs: Costs) -> list[str]:
    """KV goes back over several stages, each a layer behind: an edge needs credit for the layers on their way."""
    topology = made.topology
    if made.simulation is None or not any(edge.carries == "kv" for edge in topology.edges):
        return []
    edges = tuple(
        edge.model_copy(update={"inflight": _WIDE, "bytes": 1 << 60}) if edge.carries == "kv" else edge
        for edge in topology.edges
    )
    wide = topology.model_copy(update={"edges": edges})
    free = simulate(wide, shape, costs, frames=made.frames, sessions=made.sessions)
    if not free.period_s < made.period_s * (1 - _GAIN):
        return []
    changes = []
    for index, (edge, used) in enumerate(zip(topology.edges, free.traffic, strict=True)):
        if edge.carries == "kv" and used.peak_items > edge.inflight:
            changes.append(f"edges.{index}.inflight={used.peak_items}")
        if edge.carries == "kv" and used.peak_bytes > edge.bytes:
            changes.append(f"edges.{index}.bytes={used.peak_bytes}")
    return [
        f"credits hold the period at {made.period_s * 1000:.3g} ms; it is {free.period_s * 1000:.3g} ms with "
        + " ".join(f"--set {change}" for change in changes)
    ]
