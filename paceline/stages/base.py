"""What the runtime asks of a stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from paceline.pipeline.program import Program, Unit
from paceline.stages.item import Item

__all__ = ["Stage"]


class Stage(Protocol):
    """A unit of compute on one rank, with the state of each session that it serves."""

    def open(self, session: int, program: Program) -> None:
        """Make ready for a session. `program` is the stream whose units will come."""

    def warm(self) -> None:
        """Compute once on dummy data, so that the first frame does not pay for lazy initialisation."""

    def run(self, units: Sequence[Unit], taken: Sequence[Sequence[Item]]) -> list[list[Item]]:
        """Compute units of different sessions together.

        `taken[i]` are the items that `units[i]` takes, in its order. Returns, for each unit, one item for each of its
        gives, in their order.
        """

    def close(self, session: int) -> None:
        """Free the session's state."""
