"""State machines as values: copies of them, and keys that are equal for states from which the same can happen."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import fields, is_dataclass
from typing import Any

from paceline.pipeline.speculation.counters import Counters
from paceline.pipeline.speculation.hedge import Hedges

__all__ = ["copied", "frozen"]

_ATOMS = frozenset((int, float, bool, type(None), tuple, frozenset))
_SLOTS: dict[type, tuple[str, ...]] = {}


def copied(value: Any, known: dict[int, Any] | None = None) -> Any:
    """A copy of what may change: slots, lists, deques and dictionaries. Counters are shared, as nothing depends on
    them, and so are values of other classes."""
    kind = type(value)
    if kind is list or kind is deque:
        if not value or not _slots(type(value[0])):
            return value.copy()
        return kind(copied(each, known) for each in value)
    if kind is dict:
        known = {} if known is None else known
        return {key: copied(each, known) for key, each in value.items()}
    names = _slots(kind)
    if not names:
        return value
    # What two attributes share, as hedges by number and by outcome, is shared by those of the copy.
    known = {} if known is None else known
    if id(value) not in known:
        new = known[id(value)] = object.__new__(kind)
        for name in names:
            each = getattr(value, name)
            setattr(new, name, copied(each, known) if type(each) not in _ATOMS else each)
    return known[id(value)]


def frozen(value: Any) -> Hashable:
    """The key of a state. Counters are left out, and the numbers of hedges, which only tell them apart."""
    kind = type(value)
    if kind is list or kind is deque:
        return tuple(map(frozen, value)) if value and _slots(type(value[0])) else tuple(value)
    if kind is Counters:
        return None
    if kind is Hedges:
        return tuple(sorted((h.position, h.token, tuple(h.tokens), h.ended) for h in value))
    names = _slots(kind)
    values = [getattr(value, name) for name in names]
    return tuple([frozen(each) if type(each) not in _ATOMS else each for each in values]) if names else value


def _slots(kind: type) -> tuple[str, ...]:
    """The attributes of a state machine; none of a value that never changes."""
    found = _SLOTS.get(kind)
    if found is None:
        if kind is Counters:
            found = ()
        elif is_dataclass(kind):
            unchanging: bool = kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
            found = () if unchanging else tuple(field.name for field in fields(kind))
        else:
            found = tuple(getattr(kind, "__slots__", ()))
        _SLOTS[kind] = found
    return found
