"""The oracle: ranks blocks by the attention that will fall on them. It needs the future, so it runs in replays only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from paceline.tiers.block_stats import BlockStats, Floats, Ints

__all__ = ["Oracle"]


@dataclass(frozen=True, slots=True)
class Oracle:
    """Ranks blocks by what `future(blocks, step)` says of them: something that grows with the need for a block after
    `step`, such as the discounted sum of its coming masses, or how soon it is used next (Belady's rule)."""

    name = "oracle"

    future: Callable[[Ints, int], Floats]

    def keep(self, facts: BlockStats, step: int) -> Floats:
        """Scores `[n]`; the higher, the nearer to the compute."""
        return np.asarray(self.future(facts.block, step), dtype=np.float64)
