"""The memory tiers, from the nearest to the farthest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any

__all__ = ["Mode", "Tier", "TierSettings"]


class Tier(IntEnum):
    """Where a block lies; a smaller value is nearer to the compute. On a machine without a GPU `hbm` is an arena of RAM
    with a budget."""

    hbm = 0
    dram = 1
    nvme = 2


class Mode(StrEnum):
    """What attention reads: all blocks; all but those proven not to matter; all but those measured not to matter."""

    exact = "exact"
    certified = "certified"
    profiled = "profiled"


@dataclass(frozen=True, slots=True)
class TierSettings:
    """Settings of a `TierManager`."""

    policy: str = "attention-mass"
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the policy, by name."""
    known: Mapping[str, Any] = field(default_factory=dict)
    """Options that follow from the model, for policies that take them, as `columns`."""
    mode: Mode = Mode.exact
    epsilon: float = 0.01
    """`certified`: the attention mass that a step may leave out of every head and row, at most.
    `profiled`: the measured mass that the blocks left out may have in sum."""
    refresh: int = 8
    """Steps between two measurements of the attention mass of all blocks; then attention reads all of them."""
    bandwidth: int = 64
    """Blocks that one step may start to move between tiers."""
    hysteresis: float = 0.1
    """Share of a tier's places, those at its border, for which no two blocks change places; see `plan`."""
    spare: float = 0.0625
    """Share of a tier that is kept free, so that a new block finds room without waiting."""
    chunk: int | None = None
    """Blocks attended in one call where blocks have to be brought to the device; there is room for twice as many beside
    the hbm budget. None: 64 on the CPU, 1024 on CUDA. Part of the function: another chunk may round otherwise."""
    bits: int | None = None
    """Lossy: blocks in dram and nvme are kept at 8, 4 or 2 bits a value. None: as they were written."""
    asynchronous: bool = True
    """Whether moves are made beside the compute. Attention gives the same either way."""
    deadline_s: float = 5.0
    """Seconds after which a read or write of the nvme tier counts as hung."""
    threads: int = 4
    """Reads and writes of the nvme tier at a time."""
    watermark: int = 256 << 20
    """Bytes that the nvme tier leaves free on its file system."""

    def __post_init__(self) -> None:
        if self.refresh < 1 or self.bandwidth < 1 or self.threads < 1 or (self.chunk is not None and self.chunk < 1):
            raise ValueError("refresh, bandwidth, threads and chunk have to be at least 1")
        if not 0 <= self.epsilon < 1:
            raise ValueError(f"epsilon is {self.epsilon}; it is a share of attention mass, at least 0 and below 1")
        if self.mode is Mode.certified and self.bits is not None:
            raise ValueError(
                "certified proves what it leaves out of KV as it was written; leave out bits, or the proof"
            )
        if self.bits not in (None, 2, 4, 8):
            raise ValueError(f"bits is {self.bits}; there are 8, 4, 2, or None for no loss")
        if self.deadline_s <= 0 or not 0 <= self.spare < 1 or self.hysteresis < 0 or self.watermark < 0:
            raise ValueError("deadline_s is above 0, spare in [0, 1), hysteresis and watermark at least 0")
