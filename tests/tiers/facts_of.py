"""Facts for tests: columns by name, the others filled in."""

from __future__ import annotations

from typing import Any

import numpy as np

from paceline.tiers.block_stats import BlockStats

__all__ = ["facts_of"]


def facts_of(n: int, **columns: Any) -> BlockStats:
    """Facts of `n` blocks 0, 1, … of one session and layer, 16 tokens each, all in hbm and never attended."""
    start = np.asarray(columns.get("start", np.arange(n) * 16), dtype=np.int64)
    default: dict[str, Any] = {
        "block": np.arange(n),
        "session": np.zeros(n),
        "layer": np.zeros(n),
        "start": start,
        "place": np.full(n, -1),
        "length": np.full(n, start.max(initial=0) + 16),
        "tier": np.zeros(n),
        "mass": np.zeros(n),
        "total": np.zeros(n),
        "seen": np.zeros(n),
        "used": np.zeros(n),
        "read": np.zeros(n),
        "pinned": np.zeros(n),
        "sink": np.zeros(n),
    }
    kinds: dict[str, Any] = {
        "layer": np.int32, "place": np.int32, "tier": np.int8, "pinned": np.bool_, "sink": np.bool_,
        "mass": np.float64, "total": np.float64,
    }  # fmt: skip
    given = default | columns
    return BlockStats(**{name: np.asarray(value, dtype=kinds.get(name, np.int64)) for name, value in given.items()})
