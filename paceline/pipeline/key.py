"""The name of an item."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Key"]


class Key(NamedTuple):
    """Names one item for good: `edge` is the index in the topology, `position` the frame, `part` the place inside it
    (0, or level * layers + first layer for KV)."""

    edge: int
    session: int
    position: int
    part: int = 0
