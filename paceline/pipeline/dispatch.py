"""Which unit a rank computes next. Pure: the caller says what is ready, and when."""

from __future__ import annotations

from bisect import bisect_left, insort
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
    so a rank never waits for one item while it could compute another.

    Streams are kept in the order of their priorities. A caller that knows when something has changed for a session, and
    says so by `wake`, may have `pick` set streams aside that are not ready: then a pick costs what changed, and not the
    number of streams."""

    def __init__(
        self, programs: Iterable[Program], batches: dict[str, int] | None = None, stop: int | None = None
    ) -> None:
        """`batches`: by stage, the most units of it that run together. `stop`: one past the last frame, at which the
        sources among the programs end their sessions."""
        self.batches = batches or {}
        self.streams: list[Stream] = []
        self._place: dict[int, int] = {}
        """By identity of a stream: its place among all of them, which decides between equal priorities"""
        self._order: list[_Urgency] = []
        """Of the streams that may be ready, the most urgent first"""
        self._aside: dict[int, list[Stream]] = {}
        """By session: streams that were not ready when they were last looked at"""
        for program in programs:
            iterator = program.units(stop=stop if program.is_source else None)
            self.streams.append(Stream(program, iterator, next(iterator, None)))
            self._place[id(self.streams[-1])] = len(self.streams) - 1
        for stream in self.streams:
            self._enter(stream)

    @property
    def done(self) -> bool:
        """Whether every stream has ended."""
        return not self._order and not any(self._aside.values())

    def waiting(self) -> list[Unit]:
        """The units that come next, one a stream."""
        return [stream.unit for stream in self.streams if stream.unit is not None]

    def pick(self, ready: Callable[[Unit], bool], aside: bool = False) -> list[Stream]:
        """The streams to run now: the first one ready and, where its stage may batch, others at the same unit. `aside`
        sets those before it aside until their session is woken.

        Empty where nothing is ready.
        """
        found: list[Stream] = []
        passed = 0
        for urgency in self._order:
            stream = self.streams[urgency[-1]]
            if stream.unit is not None and ready(stream.unit):
                found = self._with_others(stream, passed, ready)
                break
            passed += 1
        if aside and passed:
            for urgency in self._order[:passed]:
                stream = self.streams[urgency[-1]]
                self._aside.setdefault(stream.program.session, []).append(stream)
            del self._order[:passed]
        return found

    def wake(self, session: int) -> None:
        """Something has changed for a session: its streams may be ready."""
        for stream in self._aside.pop(session, ()):
            self._enter(stream)

    def advance(self, stream: Stream) -> None:
        """Take a stream to its next unit, after its present one ran."""
        place = bisect_left(self._order, self._urgency(stream))
        del self._order[place]
        stream.advance()
        self._enter(stream)

    def _with_others(self, best: Stream, index: int, ready: Callable[[Unit], bool]) -> list[Stream]:
        """The most urgent stream that is ready, at a place in the order, and those that run with it."""
        unit = best.unit
        limit = 1 if unit is None else self.batches.get(unit.stage, 1)
        if unit is None or limit == 1 or unit.kind is not UnitKind.layers:
            return [best]
        shape = _shape(unit)
        later = (self.streams[urgency[-1]] for urgency in self._order[index + 1 :])
        same = [s for s in later if s.unit is not None and _shape(s.unit) == shape and ready(s.unit)]
        return [best, *same[: limit - 1]]

    def _enter(self, stream: Stream) -> None:
        if stream.unit is not None:
            insort(self._order, self._urgency(stream))

    def _urgency(self, stream: Stream) -> _Urgency:
        priority = (0, 0, 0) if stream.unit is None else stream.unit.priority
        return *priority, self._place[id(stream)]


_Urgency = tuple[int, int, int, int]
"""Priority of a stream's unit, and the stream's place."""


def _shape(unit: Unit) -> tuple[str, tuple[int, int], int]:
    """Units of equal shape fit into one forward."""
    return unit.stage, unit.layers, len(unit.rows)
