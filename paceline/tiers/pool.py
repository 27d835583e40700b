"""All blocks of a rank: whose they are, where they lie, who holds them. Columns of NumPy arrays, one entry a block."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["BlockPool", "Blocks"]

Blocks = NDArray[np.int64]

_FIRST = 256


@dataclass(slots=True)
class BlockPool:
    """The table of blocks. A block's number is its row; freed numbers are used again, under another `generation`."""

    live: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(_FIRST, dtype=np.bool_))
    session: Blocks = field(default_factory=lambda: np.zeros(_FIRST, dtype=np.int64))
    """Who allocated it; sessions that share it are not listed."""
    layer: NDArray[np.int32] = field(default_factory=lambda: np.zeros(_FIRST, dtype=np.int32))
    start: Blocks = field(default_factory=lambda: np.zeros(_FIRST, dtype=np.int64))
    place: NDArray[np.int32] = field(default_factory=lambda: np.full(_FIRST, -1, dtype=np.int32))
    sink: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(_FIRST, dtype=np.bool_))
    references: NDArray[np.int32] = field(default_factory=lambda: np.zeros(_FIRST, dtype=np.int32))
    open: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(_FIRST, dtype=np.bool_))
    """Whether more tokens are to be written soon: kept in hbm where that is possible at all."""
    tier: NDArray[np.int8] = field(default_factory=lambda: np.zeros(_FIRST, dtype=np.int8))
    slot: Blocks = field(default_factory=lambda: np.full(_FIRST, -1, dtype=np.int64))
    """Slot in its tier."""
    row: Blocks = field(default_factory=lambda: np.full(_FIRST, -1, dtype=np.int64))
    """Row of the home arena where attention reads it; -1: it has to be brought first."""
    filled: Blocks = field(default_factory=lambda: np.zeros(_FIRST, dtype=np.int64))
    """How many of its first tokens were ever written."""
    version: Blocks = field(default_factory=lambda: np.zeros(_FIRST, dtype=np.int64))
    """Counts writes: a copy made of an older version is worth nothing."""
    generation: Blocks = field(default_factory=lambda: np.zeros(_FIRST, dtype=np.int64))
    moving: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(_FIRST, dtype=np.bool_))
    lost: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(_FIRST, dtype=np.bool_))
    """Could not be read back; stays where it is until it is released."""
    peak: int = 0
    """The most blocks that there were at a time."""
    _free: list[int] = field(default_factory=lambda: list(range(_FIRST - 1, -1, -1)))

    def add(self, session: int, layer: int, start: int, place: int, sink: bool, tier: int, slot: int, row: int) -> int:
        """A new block with one reference; gives its number."""
        if not self._free:
            self._grow()
        block = self._free.pop()
        self.live[block] = True
        self.session[block], self.layer[block], self.start[block] = session, layer, start
        self.place[block], self.sink[block] = place, sink
        self.references[block] = 1
        self.open[block] = self.moving[block] = self.lost[block] = False
        self.tier[block], self.slot[block], self.row[block] = tier, slot, row
        self.version[block] = self.filled[block] = 0
        self.peak = max(self.peak, len(self))
        return block

    def remove(self, block: int) -> None:
        """Forget a block that nobody refers to."""
        self.live[block] = False
        self.references[block] = 0
        self.generation[block] += 1
        self.row[block] = self.slot[block] = -1
        self._free.append(block)

    def blocks(self) -> Blocks:
        """Numbers of all blocks."""
        return np.flatnonzero(self.live)

    def __len__(self) -> int:
        return len(self.live) - len(self._free)

    def _grow(self) -> None:
        size = len(self.live)
        for name in self.__dataclass_fields__:
            if name not in ("_free", "peak"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros(size, dtype=old.dtype)]))
        self._free = list(range(2 * size - 1, size - 1, -1))
