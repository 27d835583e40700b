"""One rank of a run of programs, from its model to its result."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from paceline.kernels.philox import session_seed
from paceline.pipeline.placement import Placement, Route, memories
from paceline.pipeline.program import ModelShape
from paceline.pipeline.programs import program_for
from paceline.pipeline.stage import StageKind
from paceline.runtime.endpoint import Endpoint
from paceline.runtime.errors import PacelineError
from paceline.runtime.journal import Journal
from paceline.runtime.lanes import own_device
from paceline.runtime.program_actor import ProgramActor
from paceline.runtime.rendezvous import Rendezvous
from paceline.runtime.result import Decision, RunResult, merge
from paceline.runtime.session import Session, SinkStage, SourceStage
from paceline.runtime.spec import RunSpec
from paceline.runtime.worker import SWITCH_INTERVAL_S, Worker
from paceline.stages.base import Stage
from paceline.stages.denoise import DenoiseStage
from paceline.stages.frame_tiers import frame_tier_manager
from paceline.stages.memory import make_memory
from paceline.stages.relay import DecodeStage, SleepStage
from paceline.stages.world_file import world_of
from paceline.stages.world_model import AnyWorldModel
from paceline.tiers.manager import TierManager

__all__ = ["run_rank"]


def run_rank(
    spec: RunSpec,
    rank: int,
    world_size: int,
    run_dir: Path,
    progress: Callable[[int], None] | None = None,
    decisions: list[Decision] | None = None,
) -> RunResult | None:
    """Run one rank. Returns the result on the leader, None elsewhere.

    Raises `StageError` where a stage failed, `TransportError` where a peer or a channel did, `RendezvousError` where
    ranks did not come together.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    placement = Placement(spec.topology)
    routes = [Route(*route) for route in sorted(placement.routes(spec.sessions))]
    rendezvous = Rendezvous.open(rank, world_size, run_dir, spec.topology.network)
    with Endpoint(rendezvous, spec.topology, routes) as endpoint:
        reports = _worker(spec, rank, endpoint, run_dir, progress or (lambda done: None), decisions).run()
        return None if reports is None else merge(reports)


def _worker(
    spec: RunSpec,
    rank: int,
    endpoint: Endpoint,
    run_dir: Path,
    progress: Callable[[int], None],
    decisions: list[Decision] | None,
) -> Worker:
    """The worker of a rank with its streams; models are loaded."""
    topology, placement = spec.topology, Placement(spec.topology)
    group = placement.group_of_rank(rank)
    torch.set_num_threads(topology.groups[group].threads)
    device = own_device(topology.groups[group].device)
    world = world_of(topology.model.weights) if topology.workload == "world" else None
    shape = ModelShape(1, 0, 0, 0) if world is None else world.header().shape
    streams = placement.streams(rank, spec.sessions)
    source = topology.stage_of(StageKind.source)
    mine = [session for stage, session in streams if stage == source]
    journals = [Journal.of_run(spec, run_dir)] if mine else []
    sessions = {session: Session(spec, session, run_dir, decisions, journals[0].add) for session in mine}
    names = sorted({stage for stage, _ in streams})
    leader = placement.rank_of(source, 0)
    worker = Worker(
        topology, endpoint, run_dir, group, device, names, leader, progress, events=spec.out is not None
    )  # fmt: skip
    seeds = {session: session_seed(spec.seed, session) for _, session in streams}
    tiers: dict[str, TierManager] = {}
    model: AnyWorldModel | None = None
    stages: dict[str, Stage] = {}
    for name in names:
        match topology.stages[name].kind:
            case StageKind.source:
                stages[name] = SourceStage(sessions)
            case StageKind.sink:
                stages[name] = SinkStage(sessions, worker.notify)
            case StageKind.sleep:
                stages[name] = SleepStage(topology.stages[name].ms)
            case StageKind.decode if world is not None:
                stages[name] = DecodeStage(world.decoder(device), name, rank)
            case StageKind.denoise if world is not None:
                model = world.load(device) if model is None else model
                stages[name] = _denoise_stage(spec, rank, device, name, model, seeds, streams, tiers)
            case kind:
                raise PacelineError(f"stage {name} is of kind {kind}, which workload {topology.workload!r} has none of")
    programs = [program_for(topology, shape, stage, session) for stage, session in streams]
    for program in programs:
        stages[program.stage].open(program.session, program)
    worker.add(
        ProgramActor(spec, rank, endpoint, worker.lanes, programs, stages, sessions, journals, tiers), names
    )  # fmt: skip
    return worker


def _denoise_stage(
    spec: RunSpec,
    rank: int,
    device: str,
    name: str,
    model: AnyWorldModel,
    seeds: dict[int, int],
    streams: Sequence[tuple[str, int]],
    tiers: dict[str, TierManager],
) -> Stage:
    """A stage that denoises. Its tiers are added to `tiers`: a rank's budgets are shared out among its
    stages, as each may have a thread of its own."""
    topology = spec.topology
    if topology.workload != "world":
        raise PacelineError(f"stage {name} denoises, and workload {topology.workload!r} has no model")
    group = topology.stages[name].group
    if group in topology.tiers:
        kinds = [topology.stages[stage].kind for stage in {stage for stage, _ in streams}]
        state_bytes = 0
        if topology.context.memory is not None and model.header.memory is not None:
            memory = topology.context.memory
            state_bytes = make_memory(memory.kind, memory.options).state_bytes(model.header.memory)
        tiers[name] = frame_tier_manager(
            topology.tiers[group],
            model.header,
            kinds.count(StageKind.denoise),
            topology.context.recall,
            device,
            topology.model.weights,
            name,
            rank,
            state_bytes * memories(topology, streams),
        )
    return DenoiseStage(model, topology, name, seeds, spec.kv_hash, tiers.get(name), rank)
