"""Heavy hitters: the most attention mass since the beginning, and the latest tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paceline.tiers.block_stats import BlockStats, Floats

__all__ = ["HeavyHitter"]


@dataclass(frozen=True, slots=True)
class HeavyHitter:
    """Ranks the latest `recent` tokens first, then blocks by the sum of all mass that ever fell on them (H2O, Zhang et
    al., NeurIPS 2023). Nothing is forgotten, so what once mattered keeps its place."""

    name = "heavy-hitter"

    recent: int = 256
    """Tokens of every session that are kept because they are the latest."""

    def keep(self, facts: BlockStats, step: int) -> Floats:
        """Scores `[n]`; the higher, the nearer to the compute."""
        # Among the latest the younger goes first; a sum of masses of one block stays far below the shift.
        distance = (facts.length - facts.start).astype(np.float64)
        return np.where(distance <= self.recent, 1e12 - distance, facts.total)
