"""A discrete-event simulator: the worker's dispatcher and programs, driven by virtual time.

Every rank is one server that computes one unit at a time. A unit takes its items and holds its credits when it starts,
and sends when it ends. A message waits for its link (one at a time between two ranks, in each direction), and the
credit for it goes back, with the link's latency, when the receiver's unit takes it. Only events wake ranks, so the cost
of a simulation is that of its events, however many ranks there are.

Times are seconds of virtual time from the start.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from paceline.pipeline.costs import Costs
from paceline.pipeline.dispatch import Dispatcher, Stream
from paceline.pipeline.placement import Placement
from paceline.pipeline.program import ModelShape, Row, Unit, UnitKind
from paceline.pipeline.programs import program_for
from paceline.pipeline.simulation import Simulation, Span, Traffic
from paceline.pipeline.token_game import Tokens, notify
from paceline.pipeline.topology import FrameTopology, Schedule
from paceline.pipeline.unit import MAY_END, Key

__all__ = ["StuckError", "simulate"]


class StuckError(RuntimeError):
    """Nothing can run any more, and not all is done."""


def simulate(
    topology: FrameTopology,
    shape: ModelShape,
    costs: Costs,
    *,
    frames: int,
    sessions: int = 1,
    seed: int | None = None,
    pace_s: float | None = None,
    first_steps: Mapping[tuple[int, int], int] | None = None,
) -> Simulation:
    """Run `frames` generated frames of each session through a topology.

    `seed` replaces `inject.seed` of the topology, whose `inject.jitter_ms` bounds a random delay before every unit and
    every message. `pace_s` is the time between actions: the source sends a frame no earlier (None: as soon as there is
    credit). `first_steps` are decisions of `fewer_steps` by (session, frame). With `schedule: serial` one rank does
    everything.

    Raises `StuckError` where the topology deadlocks; `liveness.check_liveness` names the cycle.
    """
    if frames < 1 or sessions < 1:
        raise ValueError(f"simulate at least 1 frame of 1 session, not {frames} of {sessions}")
    return _Simulator(topology, shape, costs, frames, sessions, seed, pace_s, dict(first_steps or {})).run()


@dataclass(slots=True, eq=False)
class _Rank:
    number: int
    dispatcher: Dispatcher
    running: list[Stream] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)


class _Simulator:
    def __init__(
        self, topology: FrameTopology, shape: ModelShape, costs: Costs, frames: int, sessions: int,
        seed: int | None, pace_s: float | None, first_steps: dict[tuple[int, int], int],
    ) -> None:  # fmt: skip
        self.topology, self.shape, self.costs = topology, shape, costs
        self.first_steps = first_steps
        self.tokens = Tokens(topology)
        self.random = random.Random(topology.inject.seed if seed is None else seed)
        self.jitter_s = topology.inject.jitter_ms / 1000
        self.pace_s = pace_s or 0.0
        self.prompt = topology.prompt_frames
        self.end = self.prompt + frames
        placement = Placement(topology)
        serial = topology.schedule is Schedule.serial
        self.rank_of = {
            (stage, session): 0 if serial else placement.rank_of(stage, session)
            for session in range(sessions)
            for stage in topology.stages
        }
        batches = {name: stage.max_batch for name, stage in topology.stages.items()}
        hosted: list[list[tuple[str, int]]] = [[] for _ in range(1 if serial else placement.world_size)]
        for stream, rank in self.rank_of.items():
            hosted[rank].append(stream)
        self.ranks = [
            _Rank(
                number,
                Dispatcher(
                    (program_for(topology, shape, stage, session) for stage, session in streams), batches, self.end
                ),
            )
            for number, streams in enumerate(hosted)
        ]
        # By edge: its link between two ranks, and on one rank.
        self.links = [(costs.link(edge.via, False), costs.link(edge.via, True)) for edge in topology.edges]
        # Events: (time, order of making, rank, what).
        self.events: list[tuple[float, int, int, _Event]] = []
        self.made = 0
        self.link_free: dict[tuple[int, int], float] = {}
        self.result = Simulation(
            ranks=[rank.spans for rank in self.ranks],
            emitted=[{} for _ in range(sessions)],
            shown=[{} for _ in range(sessions)],
            traffic=[Traffic() for _ in topology.edges],
        )

    def run(self) -> Simulation:
        """Everything, to the end."""
        now = 0.0
        awake = set(range(len(self.ranks)))
        while True:
            for number in sorted(awake):
                if not self.ranks[number].running:
                    self._start(self.ranks[number], now)
            if not self.events:
                break
            # All that happens at one time is known before anything is started.
            now = self.events[0][0]
            awake.clear()
            while self.events and self.events[0][0] == now:
                _, _, number, event = heapq.heappop(self.events)
                awake.add(number)
                self._apply(number, event, now)
        for index, ledger in enumerate(self.tokens.ledgers):
            statistics = ledger.statistics()
            self.result.traffic[index].peak_items = statistics.peak_items
            self.result.traffic[index].peak_bytes = statistics.peak_bytes
        waiting = [unit for rank in self.ranks for unit in rank.dispatcher.waiting()]
        if waiting:
            first = min(waiting, key=lambda unit: unit.priority)
            raise StuckError(
                f"{len(waiting)} of {len(self.rank_of)} streams wait for ever at {now:.6f} s, first of all stage "
                f"{first.stage} (session {first.session}, frame {first.frame}); check_liveness names the cycle"
            )
        self.result.end_s = now
        return self.result

    # -- units ---------------------------------------------------------------------------------------------------------

    def _start(self, rank: _Rank, now: float) -> None:
        ready = self.tokens.ready
        if self.pace_s:
            ready = lambda unit: self._due(unit) <= now and self.tokens.ready(unit)  # noqa: E731
        while True:
            streams = rank.dispatcher.pick(ready, aside=True)
            units = [stream.unit for stream in streams if stream.unit is not None]
            if not units:
                return
            if not self._is_end(units[0]):
                break
            self._hand_on(rank, streams[0], units[0], now)
        duration = self.costs.seconds(units, self.shape.layers) + self._delay()
        for unit in units:
            for key, nbytes in self.tokens.start(unit):
                sender = self.rank_of[self.topology.edges[key.edge].source, key.session]
                link = self.links[key.edge][sender == rank.number]
                self._event(now + link.latency_s, sender, _Credit(key, nbytes))
                duration += self.costs.message_s * (sender != rank.number)
            for give in unit.gives:
                target = self.rank_of[self.topology.edges[give.edge].target, unit.session]
                duration += self.costs.message_s * (target != rank.number)
        rank.running = streams
        self._event(now + duration, rank.number, _End(now))

    def _end(self, rank: _Rank, started: float, now: float) -> None:
        for stream in rank.running:
            unit = stream.unit
            if unit is None:
                continue
            rows = unit.rows or (Row(unit.frame, -1),)
            span = Span(started, now, unit.stage, unit.session, unit.kind, unit.slot, rows, unit.layers)
            rank.spans.append(span)
            for give in unit.gives:
                self._send(rank.number, Key(give.edge, unit.session, give.position, give.part), give.nbytes, now)
            notify(stream.program, unit, None, self.first_steps.get((unit.session, unit.frame), 0))
            if unit.kind is UnitKind.emit and unit.frame >= self.prompt:
                self.result.emitted[unit.session][unit.frame] = started
            elif unit.kind is UnitKind.show:
                self.result.shown[unit.session][unit.frame] = now
            rank.dispatcher.advance(stream)
            rank.dispatcher.wake(unit.session)
            if self.pace_s and stream.unit is not None and stream.unit.kind is UnitKind.emit:
                self._event(max(now, self._due(stream.unit)), rank.number, _Wake(unit.session))
        rank.running = []

    def _is_end(self, unit: Unit) -> bool:
        """Whether a unit handles the end of its session in place of a frame."""
        return unit.kind is UnitKind.end or (
            unit.frame == self.end and (unit.kind is UnitKind.emit or unit.kind in MAY_END)
        )

    def _hand_on(self, rank: _Rank, stream: Stream, unit: Unit, now: float) -> None:
        """The end of a session takes no time on a rank, and its message carries nothing."""
        for key, nbytes in self.tokens.start(unit):
            sender = self.rank_of[self.topology.edges[key.edge].source, key.session]
            link = self.links[key.edge][sender == rank.number]
            self._event(now + link.latency_s, sender, _Credit(key, nbytes))
        for give in unit.gives:
            key = Key(give.edge, unit.session, give.position, give.part)
            target = self.rank_of[self.topology.edges[give.edge].target, unit.session]
            link = self.links[give.edge][target == rank.number]
            free = max(now, self.link_free.get((rank.number, target), 0.0))
            self._event(free + link.latency_s, target, _Arrival(key, give.nbytes))
        notify(stream.program, unit, self.end, 0)
        rank.dispatcher.advance(stream)
        rank.dispatcher.wake(unit.session)

    def _due(self, unit: Unit) -> float:
        """When a paced source may send a frame; other units have no time of their own, and neither has the end."""
        if unit.kind is not UnitKind.emit or unit.frame == self.end:
            return 0.0
        return max(unit.frame - self.prompt, 0) * self.pace_s

    # -- messages and events -------------------------------------------------------------------------------------------

    def _send(self, source: int, key: Key, nbytes: int, now: float) -> None:
        target = self.rank_of[self.topology.edges[key.edge].target, key.session]
        link = self.links[key.edge][source == target]
        way = source, target
        free = max(now + self._delay(), self.link_free.get(way, 0.0)) + link.seconds(nbytes)
        if source != target:
            self.link_free[way] = free
        traffic = self.result.traffic[key.edge]
        traffic.items += 1
        traffic.bytes += nbytes
        self._event(free + link.latency_s, target, _Arrival(key, nbytes))

    def _delay(self) -> float:
        return self.random.uniform(0.0, self.jitter_s) if self.jitter_s else 0.0

    def _event(self, time: float, rank: int, event: _Event) -> None:
        self.made += 1
        heapq.heappush(self.events, (time, self.made, rank, event))

    def _apply(self, number: int, event: _Event, now: float) -> None:
        match event:
            case _Arrival(key, nbytes):
                self.tokens.arrive(key, nbytes)
                self.ranks[number].dispatcher.wake(key.session)
            case _Credit(key, nbytes):
                self.tokens.free(key, nbytes)
                self.ranks[number].dispatcher.wake(key.session)
            case _Wake(session):
                self.ranks[number].dispatcher.wake(session)
            case _End(started):
                self._end(self.ranks[number], started, now)


@dataclass(frozen=True, slots=True)
class _Arrival:
    key: Key
    nbytes: int


@dataclass(frozen=True, slots=True)
class _Credit:
    key: Key
    nbytes: int


@dataclass(frozen=True, slots=True)
class _Wake:
    session: int


@dataclass(frozen=True, slots=True)
class _End:
    started: float


_Event = _Arrival | _Credit | _Wake | _End
