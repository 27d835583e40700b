"""From the tables of blocks to what policies are told of them."""

from __future__ import annotations

from collections.abc import Mapping, Set

import numpy as np

from paceline.tiers.block_stats import BlockStats
from paceline.tiers.pool import BlockPool, Blocks
from paceline.tiers.profile import Profile

__all__ = ["census"]


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
