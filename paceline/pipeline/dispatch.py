"""Which unit a rank computes next. Pure: the caller says what is ready, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from paceline.pipeline.program import Program, Unit, UnitKind

__all__ = ["Dispatcher", "Stream"]


@dataclass(slots=True, eq=False)
class Stream:
    """One program and the unit that it is at; `unit` is None once it has ended."""

    program: Program
    iterator: Iterator[Unit]
    unit: Unit | None

    def advance(self) -> None:
        """Go to the next unit."""
        self.unit = next(self.iterator, None)


class Dispatcher:
    """The streams of one rank. Units of a stream run in order; among streams the smallest priority that is ready runs,
    so a rank never waits for one item while it could compute another."""

    def __init__(self, programs: Iterable[Program], batches: dict[str, int] | None = None) -> None:
        self.batches = batches or {}
        self.streams: list[Stream] = []
        for program in programs:
            iterator = program.units()
            self.streams.append(Stream(program, iterator, next(iterator, None)))
        self._live = [stream for stream in self.streams if stream.unit is not None]

    @property
    def done(self) -> bool:
        """Whether every stream has ended."""
        return not self._live

    def waiting(self) -> list[Unit]:
        """The units that come next, one a stream."""
        return [stream.unit for stream in self._live if stream.unit is not None]

    def pick(self, ready: Callable[[Unit], bool]) -> list[Stream]:
        """The streams to run now: the first one ready and, where its stage may batch, others at the same unit.

        Empty where nothing is ready.
        """
        live = self._live if len(self._live) == 1 else sorted(self._live, key=_urgency)
        for index, best in enumerate(live):
            unit = best.unit
            if unit is None or not ready(unit):
                continue
            limit = self.batches.get(unit.stage, 1)
            if limit == 1 or unit.kind is not UnitKind.layers:
                return [best]
            shape = _shape(unit)
            same = [s for s in live[index + 1 :] if s.unit is not None and _shape(s.unit) == shape and ready(s.unit)]
            return [best, *same[: limit - 1]]
        return []

    def advance(self, stream: Stream) -> None:
        """Take a stream to its next unit, after its present one ran."""
        stream.advance()
        if stream.unit is None:
            self._live.remove(stream)


def _urgency(stream: Stream) -> tuple[int, int, int]:
    return (0, 0, 0) if stream.unit is None else stream.unit.priority


def _shape(unit: Unit) -> tuple[str, tuple[int, int], int]:
    """Units of equal shape fit into one forward."""
    return unit.stage, unit.layers, len(unit.rows)
