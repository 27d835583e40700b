"""Time and space of a world model: old frames go first, their periphery before their middle; neighbours come along."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from paceline.tiers.block_stats import BlockStats, Floats, Ints

__all__ = ["Slab"]

_SPARSE = 32
"""Cells of the grid of time and space for each block, above which neighbours are sought instead of laid out."""


@dataclass(frozen=True, slots=True)
class Slab:
    """Ranks the blocks of a world model by when they, or neighbours in time and space, were last used, and then by
    their distance to the middle of the picture.

    A frame is cut into slabs, `columns` of them in a row; `BlockStats.place` numbers them row by row. A block used at
    step t lends its neighbours t - `toll` a hop: a frame recalled after a long time draws the frames beside it in, and
    a slab the slabs beside it, before they are asked for.
    """

    name = "slab"

    columns: int = 1
    """Slabs in a row of the picture."""
    reach: int = 1
    """How many frames, and how many slabs each way, use is lent."""
    toll: float = 2.0
    """By how many steps lent use is older a hop."""

    def keep(self, facts: BlockStats, step: int) -> Floats:
        """Scores `[n]`; the higher, the nearer to the compute."""
        if not len(facts):
            return np.zeros(0)
        place = np.maximum(facts.place, 0).astype(np.int64)
        row, column = place // self.columns, place % self.columns
        session = np.unique(facts.session, return_inverse=True)[1]
        stream = session * (int(facts.layer.max()) + 1) + facts.layer
        # A margin of empty cells around every stream, so that no neighbour is in the next row or stream.
        inside = np.stack([self._closed_up(facts.start), row, column], axis=1) + self.reach
        shape = (int(stream.max()) + 1, *(inside.max(axis=0) + 1 + self.reach).tolist())
        cell = np.ravel_multi_index((stream, *inside.T), shape)
        used = facts.used.astype(np.float64)
        if np.prod(shape, dtype=np.float64) <= _SPARSE * (len(facts) + 1024):
            lent = self._laid_out(cell, used, shape)
        else:
            lent = self._sought(cell, used, shape)
        away = np.maximum(np.abs(row - row.max() / 2), np.abs(column - (self.columns - 1) / 2))
        return np.asarray(lent - away / (1 + away.max()), dtype=np.float64)

    def _closed_up(self, start: Ints) -> Ints:
        """Frames as places in time, gaps that no use is lent across as small as they can be."""
        frames, which = np.unique(start, return_inverse=True)
        gaps = np.minimum(np.diff(frames, prepend=frames[0]), self.reach + 1)
        return np.asarray(np.cumsum(gaps)[which], dtype=np.int64)

    def _laid_out(self, cell: Ints, used: Floats, shape: tuple[int, ...]) -> Floats:
        """Use after lending, in a dense grid: hop by hop the maximum over the cells around, axis by axis."""
        grid = np.full(shape, -np.inf)
        np.maximum.at(grid.reshape(-1), cell, used)
        lent = grid.copy()
        for hop in range(1, self.reach + 1):
            for axis in (1, 2, 3):
                wide = grid.copy()
                here, there = [slice(None)] * 4, [slice(None)] * 4
                here[axis], there[axis] = slice(1, None), slice(None, -1)
                np.maximum(wide[tuple(here)], grid[tuple(there)], out=wide[tuple(here)])
                np.maximum(wide[tuple(there)], grid[tuple(here)], out=wide[tuple(there)])
                grid = wide
            np.maximum(lent, grid - hop * self.toll, out=lent)
        return np.asarray(lent.reshape(-1)[cell], dtype=np.float64)

    def _sought(self, cell: Ints, used: Floats, shape: tuple[int, ...]) -> Floats:
        """The same by searching for each neighbour, for a few blocks in much time and space."""
        order = np.argsort(cell, kind="stable")
        cells, first = np.unique(cell[order], return_index=True)
        most = np.maximum.reduceat(used[order], first)
        lent = used.copy()
        steps = range(-self.reach, self.reach + 1)
        for hops in product(steps, steps, steps):
            sought = cell + (hops[0] * shape[2] + hops[1]) * shape[3] + hops[2]
            at = np.minimum(np.searchsorted(cells, sought), len(cells) - 1)
            toll = max(map(abs, hops)) * self.toll
            np.maximum(lent, np.where(cells[at] == sought, most[at] - toll, -np.inf), out=lent)
        return lent
