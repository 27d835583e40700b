"""Attention mass: what attention looks at stays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paceline.tiers.block_stats import BlockStats, Floats

__all__ = ["AttentionMass"]


@dataclass(frozen=True, slots=True)
class AttentionMass:
    """Ranks blocks by the exponential average of their attention mass.

    What was never measured is taken for local: it gets a mass that falls with its distance to the end of its session.
    """

    name = "attention-mass"

    near: float = 16.0
    """Distance in positions at which the mass of an unmeasured block is taken to be a half."""

    def keep(self, facts: BlockStats, step: int) -> Floats:
        """Scores `[n]`; the higher, the nearer to the compute."""
        distance = np.maximum(facts.length - facts.start, 0)
        unknown = np.where(facts.sink, 1.0, 1.0 / (1.0 + distance / self.near))
        return np.where(facts.seen > 0, facts.mass, unknown)
