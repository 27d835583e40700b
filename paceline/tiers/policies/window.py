"""Sinks and a sliding window: the first blocks of a session and its latest ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paceline.tiers.block_stats import BlockStats, Floats

__all__ = ["Window"]


@dataclass(frozen=True, slots=True)
class Window:
    """Ranks sinks first, then blocks by their distance to the end of their session (StreamingLLM, Xiao et al., ICLR
    2024)."""

    name = "window"

    def keep(self, facts: BlockStats, step: int) -> Floats:
        """Scores `[n]`; the higher, the nearer to the compute."""
        nearness = (facts.start - facts.length).astype(np.float64)
        return np.where(facts.sink, np.inf, nearness)
