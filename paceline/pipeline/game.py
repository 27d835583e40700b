"""The token game of a topology: its programs without time, fired one unit at a time.

A stage's units for a session are one stream; items that arrived and credits are tokens. Sessions share no token, so one
session stands for all, wherever its stages are placed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from paceline.pipeline.dispatch import Stream
from paceline.pipeline.key import Key
from paceline.pipeline.program import ModelShape, Unit, UnitKind, program_for
from paceline.pipeline.tokens import Tokens
from paceline.pipeline.topology import Topology

__all__ = ["Game"]

State = tuple[object, ...]


@dataclass(slots=True, eq=False)
class Game:
    """One session of `end - prompt` frames. `first_steps` are decisions of `fewer_steps` by frame."""

    topology: Topology
    streams: dict[str, Stream]
    tokens: Tokens
    first_steps: Mapping[int, int]
    layers: int
    end: int
    """One past the last frame"""
    fired: int = 0
    """Units that ran"""
    item_sizes: dict[int, int] = field(default_factory=dict)
    """By edge: the greatest common divisor of the bytes of its items so far"""

    @classmethod
    def start(
        cls, topology: Topology, shape: ModelShape, frames: int, first_steps: Mapping[int, int] | None = None
    ) -> Game:
        """The game before its first unit."""
        streams = {}
        for stage in topology.stages:
            program = program_for(topology, shape, stage, 0, frames)
            iterator = program.units()
            streams[stage] = Stream(program, iterator, next(iterator, None))
        end = max(stream.program.end for stream in streams.values())
        return cls(topology, streams, Tokens(topology), first_steps or {}, shape.layers, end)

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
        if unit.kind is UnitKind.receive:
            stream.program.context.begin(unit.frame, self.first_steps.get(unit.frame, 0))
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
