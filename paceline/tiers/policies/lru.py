"""Least recently used: what was of use last stays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paceline.tiers.block_stats import BlockStats, Floats

__all__ = ["Lru"]


@dataclass(frozen=True, slots=True)
class Lru:
    """Ranks blocks by the last step at which they were of use.

    Exact attention reads every block at every step, which would make all of them equal. A block counts as used when it
    was written, or when more than the mean mass of its call fell on it; see `Profile`.
    """

    name = "lru"

    def keep(self, facts: BlockStats, step: int) -> Floats:
        """Scores `[n]`; the higher, the nearer to the compute."""
        return facts.used.astype(np.float64)
