"""The token game of a topology: its programs without time, fired one unit at a time.

A stage's units for a session are one stream; items that arrived and credits are tokens. Sessions share no token, so one
session stands for all, wherever its stages are placed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from paceline.pipeline.context import slot_of
from paceline.pipeline.denoise_program import DenoiseProgram
from paceline.pipeline.dispatch import Stream
from paceline.pipeline.key import Key
from paceline.pipeline.program import ModelShape, Program, Unit, UnitKind
from paceline.pipeline.programs import program_for
from paceline.pipeline.tokens import Tokens
from paceline.pipeline.topology import FrameTopology
from paceline.pipeline.unit import MAY_END

__all__ = ["TokenGame", "items_across", "notify", "remember"]

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
