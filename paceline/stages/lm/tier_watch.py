"""Where the blocks of a run lay over time, kept small: for the picture that `--out` draws."""

from __future__ import annotations

import numpy as np

from paceline.stages.lm.tier_history import TierHistory
from paceline.tiers.manager import TierManager

__all__ = ["TierWatch"]

_MOST_LOOKS = 256
_MOST_LAYERS = 3


class TierWatch:
    """Looks at the blocks now and then. Where there are too many looks, every second one is forgotten, and from then on
    it looks half as often; so memory does not grow with the length of a run."""

    def __init__(self, manager: TierManager) -> None:
        self._manager = manager
        depth = manager.layout.layers
        self._layers = sorted({0, depth // 2, depth - 1})[:_MOST_LAYERS]
        self._every = 1
        self._rows: dict[tuple[int, int], int] = {}
        self._steps: list[int] = []
        self._looks: list[list[bytes]] = []

    def observe(self) -> None:
        """After each step of the manager."""
        now = self._manager.now
        if now % self._every:
            return
        pool = self._manager.pool
        blocks = pool.blocks()
        found = []
        for layer in self._layers:
            some = blocks[pool.layer[blocks] == layer]
            keys = zip(pool.session[some].tolist(), pool.start[some].tolist(), strict=True)
            places = [self._rows.setdefault(key, len(self._rows)) for key in keys]
            tiers = np.zeros(len(self._rows), dtype=np.uint8)
            tiers[places] = pool.tier[some] + 1
            found.append(tiers.tobytes())
        self._steps.append(now)
        self._looks.append(found)
        if len(self._steps) >= _MOST_LOOKS:
            self._every *= 2
            kept = [index for index, step in enumerate(self._steps) if step % self._every == 0]
            self._steps = [self._steps[index] for index in kept]
            self._looks = [self._looks[index] for index in kept]

    def history(self) -> TierHistory:
        """Everything seen."""
        return TierHistory(self._layers, self._steps, [list(key) for key in self._rows], self._looks)
