"""What is known of the live blocks when a policy is asked: one row for each, as columns of NumPy."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

__all__ = ["BlockStats", "Floats", "Ints"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BlockStats:
    """Columns `[n]`, one row for each live block, in any order; never changed after they were made.

    Raises `ValueError` where the columns differ in length.
    """

    block: Ints
    """its identity, unique among the rows"""
    session: Ints
    layer: NDArray[np.int32]
    start: Ints
    """position of its first token; in a world model, its frame"""
    place: NDArray[np.int32]
    """spatial slab inside the frame; -1 where there is none"""
    length: Ints
    """present length of its session, in the units of `start`"""
    tier: NDArray[np.int8]
    """where it lies: a `Tier`"""
    mass: Floats
    """exponential average of its attention mass (`Profile`)"""
    total: Floats
    """sum of all its recorded attention mass"""
    seen: Ints
    """how often its mass was recorded"""
    used: Ints
    """last step at which it was of use: written, prefetched, or of more than the mean mass (`Profile`)"""
    read: Ints
    """last step at which attention read it"""
    pinned: NDArray[np.bool_]
    """may not be moved now: still being written, in a move already, or asked for by somebody"""
    sink: NDArray[np.bool_]
    """one of the first blocks of its session, on which attention rests whatever the text says"""

    def __post_init__(self) -> None:
        lengths = {field.name: len(getattr(self, field.name)) for field in fields(self)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns of facts have to be of one length, but are {lengths}")

    def __len__(self) -> int:
        return len(self.block)
