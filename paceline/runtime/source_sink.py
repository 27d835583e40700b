"""The two ends of every session, as stages of the rank where it lives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from paceline.pipeline.program import Program, Unit
from paceline.runtime.session import Session
from paceline.stages.failed import failure_in
from paceline.stages.item import Item, Key

__all__ = ["SinkStage", "SourceStage"]


class SourceStage:
    """Sends what each session's feed gives."""

    def __init__(self, sessions: Mapping[int, Session]) -> None:
        self._sessions = sessions

    def open(self, session: int, program: Program) -> None:
        """Nothing to keep."""

    def close(self, session: int) -> None:
        """Nothing to free."""

    def warm(self) -> None:
        """Nothing to warm."""

    def run(self, units: Sequence[Unit], taken: Sequence[Sequence[Item]]) -> list[list[Item]]:
        """See `Stage.run`."""
        out = []
        for unit in units:
            tensors, meta = self._sessions[unit.session].emit(unit.frame)
            out.append([Item(Key(g.edge, unit.session, g.position, g.part), tensors, meta) for g in unit.gives])
        return out


class SinkStage:
    """Commits finished frames. The first one that carries the mark of a failure ends what is shown of its session."""

    def __init__(self, sessions: Mapping[int, Session], notify: Callable[[], None]) -> None:
        self._sessions = sessions
        self._notify = notify

    def open(self, session: int, program: Program) -> None:
        """Nothing to keep."""

    def close(self, session: int) -> None:
        """Nothing to free."""

    def warm(self) -> None:
        """Nothing to warm."""

    def run(self, units: Sequence[Unit], taken: Sequence[Sequence[Item]]) -> list[list[Item]]:
        """See `Stage.run`."""
        for unit, (item,) in zip(units, taken, strict=True):
            session, failure = self._sessions[unit.session], failure_in(item.meta)
            if failure is not None:
                session.fail(failure)
            else:
                session.show(unit.frame, item.tensors[0])
            self._notify()
        return [[] for _ in units]
