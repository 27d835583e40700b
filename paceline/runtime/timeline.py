"""When a rank computed what, and when it had nothing to do."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from paceline.pipeline.program import Unit, UnitKind
from paceline.runtime.result import EVENTS_KEPT, Event

__all__ = ["Timeline"]

_SHORT_S = 50e-6
"""Waits below this are no event of their own."""


class Timeline:
    """Events of one rank; the oldest are dropped, so that it does not grow with the run."""

    def __init__(self, rank: int) -> None:
        self.events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self.busy_s = self.wait_s = 0.0
        self.units = 0
        self._rank = rank

    def ran(self, units: Sequence[Unit], start_s: float, end_s: float) -> None:
        """Units were computed together."""
        self.busy_s += end_s - start_s
        self.units += len(units)
        for unit in units:
            self._note(unit, start_s, end_s)

    def waited(self, start_s: float, end_s: float) -> None:
        """Nothing was ready."""
        self.wait_s += end_s - start_s
        if end_s - start_s > _SHORT_S:
            self.events.append(Event(self._rank, "", -1, "wait", -1, -1, 0, start_s, end_s))

    def _note(self, unit: Unit, start_s: float, end_s: float) -> None:
        stage, session, kind, layer = unit.stage, unit.session, unit.kind.value, unit.layers[0]
        for row in unit.rows:
            self.events.append(Event(self._rank, stage, session, kind, row.frame, row.step, layer, start_s, end_s))
        if not unit.rows and unit.kind is not UnitKind.receive:
            self.events.append(Event(self._rank, stage, session, kind, unit.frame, -1, 0, start_s, end_s))
