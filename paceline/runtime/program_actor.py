"""The actor of a rank's program streams: it computes a unit when all that it takes has arrived and credit is there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec

from paceline.pipeline.dispatch import Dispatcher, Stream
from paceline.pipeline.placement import Placement
from paceline.pipeline.program import Program, Unit, UnitKind
from paceline.runtime.actor import Done, Promise, Work
from paceline.runtime.endpoint import Endpoint
from paceline.runtime.errors import StageError
from paceline.runtime.journal import Journal
from paceline.runtime.lanes import Lanes
from paceline.runtime.result import RankReport, memory_use, merge_tiers
from paceline.runtime.session import Session, span_of
from paceline.runtime.spec import RunSpec
from paceline.runtime.timeline import Span, now
from paceline.stages.base import Stage
from paceline.stages.denoise import DenoiseStage
from paceline.stages.ending import run_end
from paceline.stages.item import Item
from paceline.stages.memory.frame_memory import FrameMemory
from paceline.tiers.manager import TierManager

__all__ = ["AHEAD", "ProgramActor", "spans_of", "unit_key"]

AHEAD = frozenset({UnitKind.sleep, UnitKind.decode, UnitKind.layers})
"""Units after which the stream's next one is known before they have run, so that it can be prepared meanwhile."""


@dataclass(frozen=True, slots=True)
class _Job:
    """Units of one stage that run together, and the streams that they belong to."""

    streams: Sequence[Stream]
    units: Sequence[Unit]
    advanced: bool
    """Whether the streams have gone to their next units already."""


@dataclass(frozen=True, slots=True)
class _Ending:
    """The end of a session, which follows everything that its stage has still to send."""

    stream: Stream
    unit: Unit
    items: Sequence[Item]


class ProgramActor:
    """All streams of one rank. They are one actor because the dispatcher chooses among them."""

    def __init__(
        self,
        spec: RunSpec,
        rank: int,
        endpoint: Endpoint,
        lanes: Lanes,
        programs: Sequence[Program],
        stages: Mapping[str, Stage],
        sessions: Mapping[int, Session],
        journals: Sequence[Journal],
        tiers: Mapping[str, TierManager],
    ) -> None:
        """`sessions` are those whose source and sink are here; `tiers` the managers by denoise stage."""
        self.topology = spec.topology
        self._spec, self._rank, self._endpoint, self._lanes = spec, rank, endpoint, lanes
        self._placement = Placement(spec.topology)
        self._stages, self._sessions, self._journals, self._tiers = stages, sessions, journals, tiers
        batches = {name: stage.max_batch for name, stage in self.topology.stages.items()}
        self._dispatcher = Dispatcher(programs, batches, spec.end)
        self._under_way = {name: 0 for name in stages}
        """Units that lanes compute, by stage."""
        self._ending: _Ending | None = None
        self._settling = False
        """Whether the next unit of a stream depends on one that a lane computes."""
        self._units = 0
        self._stopped = False

    def start(self) -> None:
        """Compute once on dummy data."""
        for stage in self._stages.values():
            stage.warm()

    def on_items(self) -> bool:
        """Items wait at the endpoint under their keys until a unit takes them."""
        return False

    def ready(self) -> Work | None:
        """The units to run now, of the oldest slot; sends ends of sessions on the way."""
        while not self._settling:
            if self._ending is not None:
                if self._under_way[self._ending.unit.stage]:
                    return None
                ending, self._ending = self._ending, None
                for item in ending.items:
                    self._endpoint.send(self._target(item.key.edge, ending.unit.session), item)
                self._dispatcher.advance(ending.stream)
            picked = self._dispatcher.pick(self._is_ready)
            if not picked:
                return None
            units = [stream.unit for stream in picked if stream.unit is not None]
            taken = [self._endpoint.take_all(unit.takes) for unit in units]
            ended = run_end(picked[0].program, units[0], taken[0])
            if ended is None:
                return self._work(picked, units, taken)
            self._ending = _Ending(picked[0], units[0], ended)
        return None

    def _work(self, picked: Sequence[Stream], units: Sequence[Unit], taken: Sequence[Sequence[Item]]) -> Work:
        first = units[0]
        ahead = self._lanes.of(first.stage) is not None and first.kind in AHEAD
        self._under_way[first.stage] += 1
        self._settling = not ahead
        if ahead:
            for stream in picked:
                self._dispatcher.advance(stream)
        return Work(
            first.stage,
            partial(self._stages[first.stage].run, units, taken),
            spans_of(units),
            tuple(Promise(give.edge, unit.session, give.nbytes) for unit in units for give in unit.gives),
            unit_key(first),
            _Job(picked, units, ahead),
        )

    def on_done(self, done: Done) -> None:
        """Send what units gave. Raises `StageError` where they failed."""
        job: _Job = done.work.context
        units = job.units
        first = units[0]
        self._under_way[first.stage] -= 1
        if done.error is not None:
            raise StageError(first.stage, self._rank, first.session, first.frame, done.error) from done.error
        given: Sequence[Sequence[Item]] = done.output
        for unit, items in zip(units, given, strict=True):
            for item in items:
                self._endpoint.send(self._target(item.key.edge, unit.session), item)
        self._units += len(units)
        if not job.advanced:
            self._settling = False
            for stream in job.streams:
                self._dispatcher.advance(stream)

    def send(self) -> None:
        """A unit runs only where there is credit for all that it gives; so nothing waits."""

    @property
    def pending(self) -> bool:
        """Nothing waits for credit."""
        return False

    def on_end(self) -> None:
        """A program knows its own end: it is an item on the edge of the source."""

    @property
    def finished(self) -> bool:
        """Whether every stream has ended."""
        return self._ending is None and self._dispatcher.done

    @property
    def progress(self) -> int:
        """Frames that were shown here; on other ranks, units that ran."""
        return sum(session.shown for session in self._sessions.values()) if self._sessions else self._units

    # -- when a unit may run -------------------------------------------------------------------------------------------

    def _is_ready(self, unit: Unit) -> bool:
        lane = self._lanes.of(unit.stage)
        if lane is not None and lane.full:
            return False
        if not all(self._endpoint.has(key) for key in unit.takes):
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
            return self._endpoint.can_send(edge, target, session, items, nbytes)
        spec = self.topology.edges[edge]
        items, nbytes = items + promised_items, nbytes + promised_bytes
        # Together they may pass the limits of the empty edge, which is no error: the unit waits for its turn.
        fits = items <= spec.inflight and nbytes <= spec.bytes
        return fits and self._endpoint.can_send(edge, target, session, items, nbytes)

    def _target(self, edge: int, session: int) -> int:
        return self._placement.rank_of(self.topology.edges[edge].target, session)

    def _emit_at(self, unit: Unit) -> float | None:
        """When an action is due. Prompt frames and the end of the session wait for nothing."""
        session = self._sessions[unit.session]
        paced = session.prompt <= unit.frame < self._spec.end
        return session.pacer.emit_at(unit.frame - session.prompt) if paced else None

    def patience(self) -> float:
        """Until the next action is due."""
        due = [self._emit_at(unit) for unit in self._dispatcher.waiting() if unit.kind is UnitKind.emit]
        times = [when - now() for when in due if when is not None]
        return min([time for time in times if time > 0], default=math.inf)

    # -- the end -------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Close the files of sessions."""
        for session in self._sessions.values():
            session.close()
        for journal in self._journals:
            journal.close()
        self._stopped = True

    def _unsaved(self) -> Iterator[list[str]]:
        yield from (journal.unsaved for journal in self._journals)
        yield from (session.unsaved for session in self._sessions.values())

    def report(self, report: RankReport) -> RankReport:
        """What came of the sessions, of KV and of its tiers."""
        digests: dict[str, str] = {}
        memories: list[FrameMemory] = []
        for stage in self._stages.values():
            if isinstance(stage, DenoiseStage):
                for session in stage.sessions:
                    memory = stage.memory(session)
                    memories += [] if memory is None else [memory]
                    levels = stage.digests(session)
                    digests |= {f"{session}/{level}": value for level, value in levels.items()}
        sessions = self._sessions.values()
        return msgspec.structs.replace(
            report,
            sessions=[session.result() for session in sessions],
            kv_sha256=digests,
            tiers=merge_tiers([manager.statistics() for manager in self._tiers.values()]) if self._tiers else None,
            memory=memory_use(memories),
            span_s=span_of(sessions),
            unsaved=[file for lost in self._unsaved() for file in lost],
        )

    def close(self) -> None:
        """Free the tiers. After a failure a lane may still read them; then the process ends anyway."""
        if self._stopped:
            for manager in self._tiers.values():
                manager.close_all()


def spans_of(units: Sequence[Unit]) -> tuple[Span, ...]:
    """What the timeline records of units."""
    return tuple(
        Span(
            unit.stage,
            unit.session,
            unit.kind.value,
            tuple((row.frame, row.step) for row in unit.rows) or ((unit.frame, -1),),
            unit.layers[0],
        )
        for unit in units
    )


def unit_key(unit: Unit) -> str:
    """What injected jitter of a unit is a function of."""
    step = unit.rows[0].step if unit.rows else -1
    return f"{unit.stage} {unit.session} {unit.kind.value} {unit.frame} {step} {unit.layers[0]}"
