"""The token game of a topology: its programs without time, fired one unit at a time, and what lies on the edges.

A stage's units for a session are one stream; items that arrived and credits are tokens. Sessions share no token, so one
session stands for all, wherever its stages are placed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from paceline.pipeline.context import slot_of
from paceline.pipeline.credits import CreditLedger
from paceline.pipeline.denoise_program import DenoiseProgram
from paceline.pipeline.dispatch import Stream
from paceline.pipeline.program import Give, ModelShape, Program, Unit, UnitKind
from paceline.pipeline.programs import program_for
from paceline.pipeline.topology import FrameTopology
from paceline.pipeline.unit import MAY_END, Key

__all__ = ["TokenGame", "Tokens", "items_across", "notify", "remember"]


class Tokens:
    """Arrived items and one credit ledger an edge, under the limits of a topology.

    A unit may run once all it takes has arrived and all it gives has credit. Its credits are held from its start on,
    and what it takes makes room again at its start.
    """

    def __init__(self, topology: FrameTopology) -> None:
        self.arrived: dict[Key, int] = {}
        """Bytes of every item that arrived and was not yet taken."""
        self._held: set[Key] = set()
        """Those of them that their receivers had from the start, for which no sender holds credit"""
        self.ledgers = [
            CreditLedger(edge.inflight, edge.bytes, f"edge {index} ({edge.source} -> {edge.target})")
            for index, edge in enumerate(topology.edges)
        ]

    def ready(self, unit: Unit) -> bool:
        """Whether a unit may run now."""
        arrived = self.arrived
        for key in unit.takes:
            if key not in arrived:
                return False
        return not unit.gives or self.refused(unit) is None

    def absent(self, unit: Unit) -> Key | None:
        """The first item that a unit waits for."""
        return next((key for key in unit.takes if key not in self.arrived), None)

    def refused(self, unit: Unit) -> Give | None:
        """The first item that a unit has no credit for. A unit that gives several items to one edge needs credit for
        all of them."""
        for index, give in enumerate(unit.gives):
            ledger = self.ledgers[give.edge]
            items, nbytes = ledger.inflight(unit.session)
            for other in unit.gives[: index + 1]:
                if other.edge == give.edge:
                    items += 1
                    nbytes += other.nbytes
            if items > ledger.max_items or nbytes > ledger.max_bytes:
                return give
        return None

    def start(self, unit: Unit) -> list[tuple[Key, int]]:
        """Take a unit's items and hold credit for what it will give. Returns the items taken with their bytes, whose
        credits have to go back to their senders by `free`."""
        taken = [(key, self.arrived.pop(key)) for key in unit.takes]
        if self._held:
            taken = [(key, nbytes) for key, nbytes in taken if key not in self._held]
            self._held.difference_update(unit.takes)
        for give in unit.gives:
            self.ledgers[give.edge].on_send(unit.session, give.nbytes)
        return taken

    def hold(self, key: Key, nbytes: int) -> None:
        """An item is at its receiver from the start: it came in an earlier life of the session."""
        self.arrived[key] = nbytes
        self._held.add(key)

    def arrive(self, key: Key, nbytes: int) -> None:
        """An item has come."""
        self.arrived[key] = nbytes

    def free(self, key: Key, nbytes: int) -> None:
        """The sender of an item hears that it was taken."""
        self.ledgers[key.edge].on_return(key.session, 1, nbytes)


State = tuple[object, ...]


@dataclass(slots=True, eq=False)
class TokenGame:
    """One session. `first_steps` are decisions of `fewer_steps` by frame."""

    topology: FrameTopology
    streams: dict[str, Stream]
    tokens: Tokens
    first_steps: Mapping[int, int]
    layers: int
    end: int | None
    """One past the last frame, where the source ends the session; None: it never does"""
    fired: int = 0
    """Units that ran"""
    item_sizes: dict[int, int] = field(default_factory=dict)
    """By edge: the greatest common divisor of the bytes of its items so far"""

    @classmethod
    def start(
        cls,
        topology: FrameTopology,
        shape: ModelShape,
        end: int | None = None,
        first_steps: Mapping[int, int] | None = None,
        slot: int | None = None,
    ) -> TokenGame:
        """The game before its first unit. With a `slot`, units of earlier slots have run, and the items that they gave
        and did not take are with their receivers."""
        decisions = first_steps or {}
        streams, tokens = {}, Tokens(topology)
        for stage in topology.stages:
            program = program_for(topology, shape, stage, 0)
            if slot is not None:
                remember(program, slot, decisions)
            iterator = program.units(slot, end if program.is_source else None)
            streams[stage] = Stream(program, iterator, next(iterator, None))
        if slot is not None:
            for key, nbytes in items_across(topology, shape, slot, decisions).items():
                tokens.hold(key, nbytes)
        return cls(topology, streams, tokens, decisions, shape.layers, end)

    @property
    def done(self) -> bool:
        """Whether every stream has ended."""
        return all(stream.unit is None for stream in self.streams.values())

    def waiting(self) -> dict[str, Unit]:
        """By stage: the unit that comes next."""
        return {stage: stream.unit for stage, stream in self.streams.items() if stream.unit is not None}

    def enabled(self) -> list[str]:
        """Stages whose next unit may run."""
        return [stage for stage, unit in self.waiting().items() if self.tokens.ready(unit)]

    def fire(self, stage: str) -> Unit:
        """Run a stage's next unit at once: what it takes makes room, and what it gives arrives."""
        stream = self.streams[stage]
        unit = stream.unit
        if unit is None:
            raise ValueError(f"stage {stage} has no unit left")
        for key, nbytes in self.tokens.start(unit):
            self.tokens.free(key, nbytes)
        self.fired += 1
        for give in unit.gives:
            self.item_sizes[give.edge] = math.gcd(self.item_sizes.get(give.edge, 0), give.nbytes)
            self.tokens.arrive(Key(give.edge, unit.session, give.position, give.part), give.nbytes)
        notify(stream.program, unit, self.end, self.first_steps.get(unit.frame, 0))
        stream.advance()
        return unit

    def state(self) -> tuple[int, int, State]:
        """The least and the greatest frame that units are at, and the state relative to the least one.

        Credits need no place in it: in this game an item is in flight if and only if it has arrived and was not taken.
        """
        units = self.waiting()
        base = min((unit.frame for unit in units.values()), default=0)
        top = max((unit.frame for unit in units.values()), default=0)
        places = tuple(
            (stage, unit.kind, unit.frame - base, unit.layers, tuple((row.frame - base, row.step) for row in unit.rows))
            for stage, unit in units.items()
        )
        items = frozenset((key.edge, key.position - base, key.part) for key in self.tokens.arrived)
        return base, top, (places, items)


def notify(program: Program, unit: Unit, end: int | None, first_step: int) -> None:
    """Tell a program what came with the item that a unit took: the end of the session, or the step at which a frame
    begins."""
    if unit.frame == end and unit.kind in MAY_END:
        program.finish(end)
    elif unit.kind is UnitKind.receive:
        program.context.begin(unit.frame, first_step)


def items_across(
    topology: FrameTopology, shape: ModelShape, slot: int, first_steps: Mapping[int, int] | None = None
) -> dict[Key, int]:
    """The items that units of slots before `slot` give and do not take, with their bytes: what the receivers of a
    session have to hold for it to go on from there.

    Every item is taken within the reach of a pass, so only the units of the slots just before are looked at. Raises
    `ValueError` where they take what is given later: no such cut of the session exists.
    """
    decisions = first_steps or {}
    given: dict[Key, int] = {}
    taken: set[Key] = set()
    context, mode, steps = topology.context, topology.context.mode, topology.steps
    near = 2 * (max(context.window, steps) + steps + 3)
    oldest = slot // slot_of(mode, steps, 1, 0) - near
    begins = slot_of(mode, steps, oldest, 0) if oldest > context.prompt else None
    for stage in topology.stages:
        program = program_for(topology, shape, stage, 0)
        if begins is not None:
            remember(program, begins, decisions)
        for unit in program.units(begins):
            if unit.slot >= slot:
                break
            taken.update(unit.takes)
            for give in unit.gives:
                given[Key(give.edge, 0, give.position, give.part)] = give.nbytes
            notify(program, unit, None, decisions.get(unit.frame, 0))
    early = {key for key in taken - given.keys() if begins is not None and key.position <= oldest + near // 2}
    if not taken <= given.keys() | early:
        raise ValueError(f"units before slot {slot} take {sorted(taken - given.keys())[:3]}, which later ones give")
    return {key: nbytes for key, nbytes in given.items() if key not in taken}


def remember(program: Program, slot: int, first_steps: Mapping[int, int]) -> None:
    """Give a program the decisions about the frames that came in before a slot."""
    if isinstance(program, DenoiseProgram):
        before = program.first_frame(slot, program.steps[0])
        program.context.first_steps = {frame: step for frame, step in first_steps.items() if frame < before}
