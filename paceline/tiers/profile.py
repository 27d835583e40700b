"""The attention profile: what is remembered of the attention mass that fell on each block."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.tiers.block_stats import BlockStats, Floats, Ints
from paceline.tiers.pool import BlockPool, Blocks

__all__ = ["Profile", "Seen", "census", "of_use"]


def of_use(masses: Floats) -> NDArray[np.bool_]:
    """Which blocks of a call were of use: those on which more than the mean mass of its blocks fell."""
    # Not by rounding alone: of blocks that are all equal none is.
    return np.asarray(masses > masses.mean() * (1 + 1e-9)) if len(masses) else np.zeros(0, dtype=np.bool_)


class Seen(NamedTuple):
    """Columns of `BlockStats` that the profile knows, `[n]` each, in the order of the blocks asked for."""

    mass: Floats
    total: Floats
    seen: Ints
    used: Ints
    read: Ints


class Profile:
    """Attention mass of blocks, as an exponential average over time, by their ids.

    A *call* is one pass of attention of one session in one layer, over all blocks that it reads; the masses of a call,
    averaged over heads and rows, sum to at most 1. `mass` averages over the recorded calls of a block with weights
    `decay` ** (age in steps), divided by the sum of these weights, so that it is unbiased from the first record on.
    Between records it stays as it is: a block that is not attended at all is not forgotten, its session waits.

    A block is *used* in a call where more than the mean mass of the call's blocks fell on it (`of_use`). Exact
    attention reads all blocks at every step, so that "was read" tells a policy nothing. Writing is use, too, and so is
    a prefetch.

    Ids index arrays, so they should be small and be used again, as those of a pool are. Not thread-safe.
    """

    __slots__ = ("_decay", "_last", "_mass", "_read", "_seen", "_total", "_used", "_weight")

    def __init__(self, decay: float = 0.7, blocks: int = 1024) -> None:
        """`decay`: the weight of what was recorded a step ago, in [0, 1). Raises `ValueError`."""
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it has to be at least 0 and less than 1")
        self._decay = decay
        self._mass = np.zeros(blocks)
        self._weight = np.zeros(blocks)
        self._total = np.zeros(blocks)
        self._seen = np.zeros(blocks, dtype=np.int64)
        self._used = np.zeros(blocks, dtype=np.int64)
        self._read = np.zeros(blocks, dtype=np.int64)
        self._last = np.zeros(blocks, dtype=np.int64)

    def add(self, blocks: Ints, step: int) -> None:
        """Blocks that were made, or written to from their beginning, in a step; whatever was known of an id is gone."""
        if not len(blocks):
            return
        self._grow(int(blocks.max()) + 1)
        for column in (self._mass, self._weight, self._total, self._seen):
            column[blocks] = 0
        for column in (self._used, self._read, self._last):
            column[blocks] = step

    def use(self, blocks: Ints, step: int) -> None:
        """Blocks that were written in a step, or that will be read soon: that is use."""
        self._used[blocks] = step

    def record(self, step: int, blocks: Ints, masses: Floats) -> None:
        """Take in the masses of one call, over different blocks. Raises `ValueError` for masses that are none."""
        if len(blocks) != len(masses):
            raise ValueError(f"{len(masses)} masses for {len(blocks)} blocks")
        if not len(blocks):
            return
        if not np.isfinite(masses).all() or masses.min() < 0:
            raise ValueError("an attention mass is negative or no number")
        fade = self._decay ** np.maximum(step - self._last[blocks], 0)
        self._mass[blocks] = self._mass[blocks] * fade + masses
        self._weight[blocks] = self._weight[blocks] * fade + 1.0
        self._total[blocks] += masses
        self._seen[blocks] += 1
        self._last[blocks] = step
        self._read[blocks] = step
        self._used[blocks[of_use(masses)]] = step

    def touch(self, step: int, blocks: Ints) -> None:
        """Blocks that attention read in a step of which no masses were recorded."""
        self._read[blocks] = step

    def of(self, blocks: Ints) -> Seen:
        """What is known of some blocks."""
        weight = self._weight[blocks]
        mass = np.divide(self._mass[blocks], weight, out=np.zeros(len(blocks)), where=weight > 0)
        return Seen(mass, self._total[blocks], self._seen[blocks], self._used[blocks], self._read[blocks])

    def _grow(self, wanted: int) -> None:
        if wanted <= len(self._mass):
            return
        size = max(wanted, 2 * len(self._mass))

        def grown(old: NDArray[np.generic]) -> NDArray[np.generic]:
            new = np.zeros(size, dtype=old.dtype)
            new[: len(old)] = old
            return new

        for name in self.__slots__:
            if name != "_decay":
                setattr(self, name, grown(getattr(self, name)))


def census(
    pool: BlockPool,
    profile: Profile,
    lengths: Mapping[int, int],
    block_size: int,
    unreadable: Set[int] = frozenset(),
    blocks: Blocks | None = None,
) -> BlockStats:
    """The facts of some blocks of a pool, or of all; `lengths` of the open sessions. Blocks that are open, on their
    way, lost or `unreadable` are not to be moved."""
    blocks = pool.blocks() if blocks is None else blocks
    known = profile.of(blocks)
    fixed = pool.open[blocks] | pool.moving[blocks] | pool.lost[blocks]
    if unreadable:
        fixed |= np.isin(blocks, list(unreadable))
    return BlockStats(
        block=blocks,
        session=pool.session[blocks],
        layer=pool.layer[blocks],
        start=pool.start[blocks],
        place=pool.place[blocks],
        length=_lengths(pool.session[blocks], pool.start[blocks], lengths, block_size),
        tier=pool.tier[blocks],
        mass=known.mass,
        total=known.total,
        seen=known.seen,
        used=known.used,
        read=known.read,
        pinned=fixed,
        sink=pool.sink[blocks],
    )


def _lengths(sessions: Blocks, starts: Blocks, lengths: Mapping[int, int], block_size: int) -> Blocks:
    """By block: the length of its session. Of a session that has ended, while another one still holds its blocks, it is
    where the last of these ends."""
    numbers, which = np.unique(sessions, return_inverse=True)
    found = np.asarray([lengths.get(number, -1) for number in numbers.tolist()], dtype=np.int64)
    if (found < 0).any():
        ends = np.zeros(len(numbers), dtype=np.int64)
        np.maximum.at(ends, which, starts + block_size)
        found = np.where(found < 0, ends, found)
    taken: Blocks = found[which]
    return taken
