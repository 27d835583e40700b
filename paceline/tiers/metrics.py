"""What the tiers of one rank did, as the JSON of a run says it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from paceline.tiers.omitted_mass import OmittedMass
from paceline.tiers.staging import Staging
from paceline.tiers.stalls import Stalls
from paceline.tiers.storage import Storage
from paceline.tiers.tier import Tier

__all__ = ["TierMetrics"]

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
