"""An edge between two ranks."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Route"]


class Route(NamedTuple):
    """The index of an edge in the topology, and the ranks that it joins."""

    edge: int
    source: int
    target: int
