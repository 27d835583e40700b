"""The record that `TierWatch` keeps and a rank reports."""

from __future__ import annotations

import msgspec

__all__ = ["TierHistory"]


class TierHistory(msgspec.Struct, frozen=True):
    """Looks at the blocks of a few layers, in the order of time."""

    layers: list[int]
    steps: list[int]
    """Step of each look."""
    rows: list[list[int]]
    """Session and position of the first token of each block that was ever seen, by row."""
    looks: list[list[bytes]]
    """By look and layer of `layers`: for each row 1 + its tier, or 0 where there was no block; behind the end, too."""
