"""The memory tiers, from the nearest to the farthest."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Tier"]


class Tier(IntEnum):
    """Where a block lies; a smaller value is nearer to the compute. On a machine without a GPU `hbm` is an arena of RAM
    with a budget."""

    hbm = 0
    dram = 1
    nvme = 2
