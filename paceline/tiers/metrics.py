"""How much attention mass was left out, as far as it was proven and measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paceline.tiers.attention import Attended
from paceline.tiers.mover import Stalls
from paceline.tiers.settings import Tier
from paceline.tiers.staging import Staging
from paceline.tiers.storage import Storage

__all__ = ["OmittedMass", "TierMetrics"]


@dataclass(slots=True)
class OmittedMass:
    """Sums over calls of attention."""

    skipped: int = 0
    """Blocks that were not read."""
    measured: int = 0
    """Calls that measured what was left out."""
    largest: float = 0.0
    total: float = 0.0
    bound: float = 0.0

    def take(self, attended: Attended) -> None:
        """Count one call."""
        if attended.bound is not None:
            self.bound = max(self.bound, attended.bound)
        if attended.omitted is not None:
            self.measured += 1
            self.largest = max(self.largest, attended.omitted[0])
            self.total += attended.omitted[1]

    def statistics(self) -> dict[str, object]:
        """For the JSON of a run: shares of the attention mass of a head and row. `bound` is the largest that a call was
        allowed to leave out: proven for every head and row (certified), or expected on their mean (profiled)."""
        mean = self.total / self.measured if self.measured else 0.0
        return {
            "skipped": self.skipped,
            "omitted_mass": {"max": self.largest, "mean": mean},
            "omitted_bound": {"max": self.bound},
        }


_NAMES = [tier.name for tier in Tier]


class TierMetrics:
    """Counts since the manager was made."""

    def __init__(self, storage: Storage, staging: Staging, stalls: Stalls) -> None:
        self._storage, self._staging, self._stalls = storage, staging, stalls
        self.omission = OmittedMass()
        self._hits: NDArray[np.int64] = np.zeros(3, dtype=np.int64)
        self._most = [0] * len(Tier)

    def looked_up(self, tiers: NDArray[np.int8]) -> None:
        """Blocks were read that lie in these tiers."""
        if tiers.any():
            self._hits += np.bincount(tiers, minlength=3)
        else:
            self._hits[Tier.hbm] += len(tiers)

    def stepped(self) -> None:
        """A forward has ended."""
        self._most = [max(most, free.taken) for most, free in zip(self._most, self._storage.free, strict=True)]

    def statistics(self) -> dict[str, object]:
        """Plain data, by name."""
        storage, pool = self._storage, self._storage.pool
        held = np.bincount(pool.tier[pool.blocks()], minlength=3).tolist()
        nbytes, stored = storage.layout.block_nbytes, storage.memory.stored_nbytes
        sizes = (nbytes, stored, stored)
        return {
            "hits": dict(zip(_NAMES, self._hits.tolist(), strict=True)),
            "lookups": int(self._hits.sum()),
            "moved_bytes": storage.moved_bytes,
            "staged_bytes": self._staging.staged_bytes,
            **self.omission.statistics(),
            "packing_error": {"max": storage.memory.error},
            "errors": dict(sorted(storage.failures.items())),
            "stalls": dict(sorted(self._stalls.count.items())),
            "stall_seconds": {cause: round(s, 6) for cause, s in sorted(self._stalls.seconds.items())},
            "blocks": dict(zip(_NAMES, held, strict=True)),
            "bytes": {name: number * size for name, number, size in zip(_NAMES, held, sizes, strict=True)},
            "most_blocks": dict(zip(_NAMES, self._most, strict=True)),
            "most_bytes": {name: number * size for name, number, size in zip(_NAMES, self._most, sizes, strict=True)},
            "peak_bytes": pool.peak * nbytes,
            "slots": {tier.name: storage.free[tier].count for tier in Tier},
            "staging_bytes": storage.memory.staging_nbytes,
        }
