"""The worker loop of one rank: take what has arrived, compute a unit, send what it gives.

All decisions are the dispatcher's; this loop brings time, items and credits to it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from paceline.kernels.philox import session_seed
from paceline.pipeline.dispatch import Dispatcher, Stream
from paceline.pipeline.placement import Placement
from paceline.pipeline.program import ModelShape, Unit, UnitKind
from paceline.pipeline.programs import program_for
from paceline.pipeline.topology import StageKind
from paceline.runtime.clock import now
from paceline.runtime.device import own_device
from paceline.runtime.endpoint import Endpoint, Route
from paceline.runtime.errors import PacelineError, StageError
from paceline.runtime.jitter import delay_share
from paceline.runtime.journal import Journal
from paceline.runtime.lane import Finished, Job, Lane
from paceline.runtime.lanes import Lanes
from paceline.runtime.rendezvous import Rendezvous
from paceline.runtime.report import merge, merge_tiers, peak_rss_bytes
from paceline.runtime.report_exchange import ReportExchange
from paceline.runtime.result import Decision, RankReport, RunResult
from paceline.runtime.session import Session, span_of
from paceline.runtime.source_sink import SinkStage, SourceStage
from paceline.runtime.spec import RunSpec
from paceline.runtime.timeline import Timeline
from paceline.stages.base import Stage
from paceline.stages.denoise import DenoiseStage
from paceline.stages.dit import DiT, load_dit
from paceline.stages.dit_config import find_weights
from paceline.stages.ending import run_end
from paceline.stages.frame_tiers import frame_tier_manager
from paceline.stages.item import Item
from paceline.stages.relay import DecodeStage, SleepStage
from paceline.tiers.manager import TierManager

__all__ = ["Worker", "run_rank"]

_TELL_EVERY_S = 0.2
_SWITCH_INTERVAL_S = 0.0005
"""How long the worker thread may keep the interpreter from the threads that deliver; Python's own 5 ms is a pass."""


class Worker:
    """One rank of a run: its streams, its stages and its end of the channels."""

    def __init__(
        self,
        spec: RunSpec,
        rank: int,
        endpoint: Endpoint,
        run_dir: Path,
        progress: Callable[[int], None],
        decisions: list[Decision] | None,
    ) -> None:
        self.spec, self.rank, self.endpoint, self._progress = spec, rank, endpoint, progress
        self._run_dir = run_dir
        topology = self.topology = spec.topology
        self.placement = Placement(topology)
        self.group = self.placement.group_of_rank(rank)
        group = topology.groups[self.group]
        torch.set_num_threads(group.threads)
        self.device = own_device(group.device)
        model = None
        if topology.workload == "world":
            model = load_dit(find_weights(topology.model.weights), self.device)
        self.shape = ModelShape(1, 0, 0, 0) if model is None else model.config.shape
        streams = self.placement.streams(rank, spec.sessions)
        seeds = {session: session_seed(spec.seed, session) for _, session in streams}
        self.coordinator = self.placement.rank_of(self._stage_of(StageKind.source), 0)
        mine = [s for stage, s in streams if topology.stages[stage].kind is StageKind.source]
        self.journals = [Journal.of_run(spec, run_dir)] if mine else []
        self.sessions = {s: Session(spec, s, run_dir, decisions, self.journals[0].add) for s in mine}
        self.tiers: dict[str, TierManager] = {}
        """By denoise stage; a rank's budgets are shared out among its stages, as each may have a thread of its own."""
        self.stages: dict[str, Stage] = {}
        for name in {stage for stage, _ in streams}:
            self.stages[name] = self._make(name, model, seeds, sorted({stage for stage, _ in streams}))
        programs = [program_for(topology, self.shape, stage, s) for stage, s in streams]
        for program in programs:
            self.stages[program.stage].open(program.session, program)
        batches = {name: stage.max_batch for name, stage in topology.stages.items()}
        self.dispatcher = Dispatcher(programs, batches, spec.end)
        self.timeline = Timeline(rank, run_dir if spec.out is not None else None)
        self._told_s = 0.0
        self._jitter = topology.inject.jitter_ms / 1000
        self._lanes = Lanes(topology, self.stages, self.device, self._delay, endpoint.wake)

    def _stage_of(self, kind: StageKind) -> str:
        return next(name for name, stage in self.topology.stages.items() if stage.kind is kind)

    def _make(self, name: str, model: DiT | None, seeds: dict[int, int], beside: Sequence[str]) -> Stage:
        spec = self.topology.stages[name]
        match spec.kind:
            case StageKind.source:
                return SourceStage(self.sessions)
            case StageKind.sink:
                return SinkStage(self.sessions, self._tell)
            case StageKind.sleep:
                return SleepStage(spec.ms)
        if model is None:
            raise PacelineError(f"stage {name} needs a model, and workload {self.topology.workload!r} has none")
        if spec.kind is StageKind.decode:
            return DecodeStage(model.config.grid_y, name, self.rank)
        if self.group in self.topology.tiers:
            kinds = [self.topology.stages[stage].kind for stage in beside]
            self.tiers[name] = frame_tier_manager(
                self.topology.tiers[self.group],
                model.config,
                kinds.count(StageKind.denoise),
                self.topology.context.recall,
                self.device,
                self.topology.model.weights,
                name,
                self.rank,
            )
        return DenoiseStage(model, self.topology, name, seeds, self.spec.kv_hash, self.tiers.get(name), self.rank)

    # -- the loop ------------------------------------------------------------------------------------------------------

    def run(self) -> RunResult | None:
        """Run all streams to their end and exchange reports. Raises what a stage or a channel raised."""
        for stage in self.stages.values():
            stage.warm()
        self.endpoint.start()
        started = now()
        while not (self.dispatcher.done and self._lanes.idle):
            self.endpoint.pump()
            seen = self.endpoint.version
            self._collect()
            picked = self.dispatcher.pick(self._ready)
            if picked:
                self._run(picked)
            else:
                self._wait(seen)
            self._heartbeat()
        self._lanes.close()
        for session in self.sessions.values():
            session.close()
        for journal in self.journals:
            journal.close()
        self.timeline.close()
        report = self._report(now() - started)
        for manager in self.tiers.values():
            manager.close_all()
        limit = self.topology.network.max_message
        exchange = ReportExchange(
            self.endpoint, self.rank, self.placement.world_size, self._run_dir, limit, self._heartbeat
        )
        if self.rank != self.coordinator:
            exchange.give(self.coordinator, report)
            return None
        return merge([report, *exchange.gather(with_events=self.spec.out is not None)])

    def _wait(self, seen: int) -> None:
        start_s = now()
        computing = not self._lanes.idle
        self.endpoint.wait(seen, self._patience())
        if computing:
            return
        self.timeline.waited(start_s, now())

    def _ready(self, unit: Unit) -> bool:
        lane = self._lanes.of(unit.stage)
        if lane is not None and lane.full:
            return False
        if not all(self.endpoint.has(key) for key in unit.takes):
            return False
        if unit.kind is UnitKind.emit:
            when = self._emit_at(unit)
            if when is not None and now() < when:
                return False
        if not unit.gives:
            return True
        edges: dict[int, tuple[int, int]] = {}
        for give in unit.gives:
            items, nbytes = edges.get(give.edge, (0, 0))
            edges[give.edge] = items + 1, nbytes + give.nbytes
        return all(self._has_credit(edge, unit.session, *counts) for edge, counts in edges.items())

    def _has_credit(self, edge: int, session: int, items: int, nbytes: int) -> bool:
        target = self._target(edge, session)
        promised_items, promised_bytes = self._lanes.promised(edge, session)
        if not promised_items:
            return self.endpoint.can_send(edge, target, session, items, nbytes)
        spec = self.topology.edges[edge]
        items, nbytes = items + promised_items, nbytes + promised_bytes
        # Together they may pass the limits of the empty edge, which is no error: the unit waits for its turn.
        fits = items <= spec.inflight and nbytes <= spec.bytes
        return fits and self.endpoint.can_send(edge, target, session, items, nbytes)

    def _run(self, picked: Sequence[Stream]) -> None:
        units = [stream.unit for stream in picked if stream.unit is not None]
        job = Job(picked, units, [self.endpoint.take_all(unit.takes) for unit in units])
        first = units[0]
        lane = self._lanes.of(first.stage)
        ended = run_end(picked[0].program, first, job.taken[0])
        if ended is not None:
            self._hand_on(lane, picked[0], first, ended)
            return
        if lane is not None:
            self._submit(lane, job)
            return
        self._delay(first, 0)
        start_s = now()
        try:
            given = self.stages[first.stage].run(units, job.taken)
        except Exception as error:
            raise StageError(first.stage, self.rank, first.session, first.frame, error) from error
        end_s = now()
        self._delay(first, 1)
        self._finish(Finished(job, start_s, end_s, given, None))
        for stream in picked:
            self.dispatcher.advance(stream)

    def _submit(self, lane: Lane, job: Job) -> None:
        if not self._lanes.submit(lane, job):
            self._settle(lane)
        for stream in job.streams:
            self.dispatcher.advance(stream)

    def _hand_on(self, lane: Lane | None, stream: Stream, unit: Unit, items: Sequence[Item]) -> None:
        """Send the end of a session, behind all that its stage has still to give."""
        if lane is not None:
            self._settle(lane)
        self._delay(unit, 0)
        for item in items:
            self.endpoint.send(self._target(item.key.edge, unit.session), item)
        self.dispatcher.advance(stream)

    def _settle(self, lane: Lane) -> None:
        """Wait until a lane has done its jobs, and see to them."""
        while not lane.idle:
            seen = self.endpoint.version
            if not self._collect():
                self.endpoint.wait(seen, _TELL_EVERY_S)
                self._heartbeat()

    def _collect(self) -> bool:
        """See to the jobs that lanes have finished; whether there was one."""
        done = self._lanes.collect()
        for finished in done:
            self._finish(finished)
        return bool(done)

    def _finish(self, finished: Finished) -> None:
        """Send what units gave. Raises `StageError` where they failed."""
        units = finished.job.units
        if finished.error is not None:
            first = units[0]
            raise StageError(first.stage, self.rank, first.session, first.frame, finished.error) from finished.error
        for unit, items in zip(units, finished.given, strict=True):
            for item in items:
                self.endpoint.send(self._target(item.key.edge, unit.session), item)
        self.timeline.ran(units, finished.start_s, finished.end_s)

    def _target(self, edge: int, session: int) -> int:
        return self.placement.rank_of(self.topology.edges[edge].target, session)

    # -- time ----------------------------------------------------------------------------------------------------------

    def _emit_at(self, unit: Unit) -> float | None:
        """When an action is due. Prompt frames and the end of the session wait for nothing."""
        session = self.sessions[unit.session]
        paced = session.prompt <= unit.frame < self.spec.end
        return session.pacer.emit_at(unit.frame - session.prompt) if paced else None

    def _patience(self) -> float:
        """Seconds to wait for news: until the next action is due, and never longer than a heartbeat."""
        due = [self._emit_at(unit) for unit in self.dispatcher.waiting() if unit.kind is UnitKind.emit]
        times = [when - now() for when in due if when is not None]
        return max(0.0, min([time for time in times if time > 0], default=_TELL_EVERY_S))

    def _delay(self, unit: Unit, side: int) -> None:
        """Injected jitter."""
        if self._jitter:
            time.sleep(self._jitter * delay_share(self.topology.inject.seed, unit, side))

    def _tell(self) -> None:
        self._progress(sum(session.shown for session in self.sessions.values()))
        self._told_s = now()

    def _heartbeat(self) -> None:
        if now() - self._told_s > _TELL_EVERY_S:
            shown = sum(session.shown for session in self.sessions.values())
            self._progress(shown if self.sessions else self.timeline.units)
            self._told_s = now()

    # -- the end -------------------------------------------------------------------------------------------------------

    def _unsaved(self) -> Iterator[list[str]]:
        yield from (journal.unsaved for journal in self.journals)
        yield from (session.unsaved for session in self.sessions.values())

    def _report(self, wall_s: float) -> RankReport:
        digests: dict[str, str] = {}
        for stage in self.stages.values():
            if isinstance(stage, DenoiseStage):
                for session in stage.sessions:
                    levels = stage.digests(session)
                    digests |= {f"{session}/{level}": value for level, value in levels.items()}
        sessions = self.sessions.values()
        return RankReport(
            rank=self.rank,
            group=self.group,
            host=os.uname().nodename,
            pid=os.getpid(),
            device=self.device,
            threads=torch.get_num_threads(),
            stages=sorted(self.stages),
            busy_s=self.timeline.busy_s,
            wall_s=wall_s,
            stage_ms=self.timeline.passes.medians_ms(),
            peak_rss_bytes=peak_rss_bytes(),
            sessions=[session.result() for session in sessions],
            edges=self.endpoint.uses(),
            kv_sha256=digests,
            wait_s=self.timeline.wait_s,
            tiers=merge_tiers([manager.statistics() for manager in self.tiers.values()]) if self.tiers else None,
            span_s=span_of(sessions),
            unsaved=[file for lost in self._unsaved() for file in lost],
        )


def run_rank(
    spec: RunSpec,
    rank: int,
    world_size: int,
    run_dir: Path,
    progress: Callable[[int], None] | None = None,
    decisions: list[Decision] | None = None,
) -> RunResult | None:
    """Run one rank. Returns the result on the coordinator, None elsewhere.

    Raises `StageError` where a stage failed, `TransportError` where a peer or a channel did, `RendezvousError` where
    ranks did not come together.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    placement = Placement(spec.topology)
    routes = [Route(*route) for route in sorted(placement.routes(spec.sessions))]
    rendezvous = Rendezvous.open(rank, world_size, run_dir, spec.topology.network)
    with Endpoint(rendezvous, spec.topology, routes) as endpoint:
        worker = Worker(spec, rank, endpoint, run_dir, progress or (lambda done: None), decisions)
        return worker.run()
