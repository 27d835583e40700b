"""The end of a session, as it travels: an item that carries nothing else, in the place of the frame after the last."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.pipeline.program import Program, Unit, UnitKind
from paceline.pipeline.unit import MAY_END
from paceline.stages.item import Item, Key

__all__ = ["end_item", "is_end", "run_end"]

_KEY = "end"


def end_item(key: Key) -> Item:
    """The end of a session under a key."""
    return Item(key, (), {_KEY: 1})


def is_end(item: Item) -> bool:
    """Whether an item is the end of its session."""
    return _KEY in item.meta


def run_end(program: Program, unit: Unit, taken: Sequence[Item]) -> list[Item] | None:
    """Run a unit that handles the end of its session, which is no work of its stage: returns what it gives, and tells
    the program where the end came with the items. None for a unit that is its stage's, which is then untouched."""
    if unit.kind is UnitKind.discard:
        return []
    ends = unit.kind is UnitKind.end or (unit.kind is UnitKind.emit and program.ended(unit.frame))
    if unit.kind in MAY_END and any(is_end(item) for item in taken):
        program.finish(unit.frame)
        ends = True
    if not ends:
        return None
    return [end_item(Key(give.edge, unit.session, give.position, give.part)) for give in unit.gives]
