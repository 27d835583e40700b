"""Where a frame looks: a rectangle on a torus."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Pose", "View"]

Pose = tuple[int, int]
"""(y, x) of the upper left corner of a view, in units of the torus"""


@dataclass(frozen=True, slots=True)
class View:
    """What a frame shows: a rectangle on a torus."""

    torus: int
    """Sides of the torus"""
    height: int
    width: int
