"""What a topology says of memory tiers: how much KV each rank of a group keeps where, and what decides."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import Field

from paceline.pipeline.strict_model import Size, SizeOrNone, StrictModel

__all__ = ["NvmeSpec", "TierMode", "TierSpec"]


class TierMode(StrEnum):
    """What attention reads of the blocks that do not lie in hbm."""

    exact = "exact"
    """all of them"""
    certified = "certified"
    """those without which more than `epsilon` of the attention mass could be missing; bounds on the keys prove it"""
    profiled = "profiled"
    """those without which, by the profile, more than `epsilon` would be missing; nothing proves it"""


class NvmeSpec(StrictModel):
    """The last tier: one preallocated file for each rank in a folder."""

    path: Path
    """The folder; it is made where it is missing."""
    size: Size
    """Bytes of each rank's file."""


class TierSpec(StrictModel):
    """Where each rank of a group keeps the KV of its sessions. Every rank has these budgets for itself."""

    hbm: Size
    """Bytes of KV on the device; on a CPU machine an arena of RAM with this budget stands in for it."""
    dram: SizeOrNone = 0
    """Bytes of KV in host memory, pinned where there is a GPU; 0: none."""
    nvme: NvmeSpec | None = None
    policy: str = "attention-mass"
    """What keeps a block high up: the name of a policy (`paceline.tiers.policies`)."""
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Options of the policy, by name."""
    mode: TierMode = TierMode.exact
    epsilon: float = Field(0.01, gt=0, lt=1)
    """certified, profiled: the share of the attention mass that a query may miss."""
    block_size: int = Field(16, ge=1, le=1024)
    """Tokens of a block: one layer, all KV heads of the rank."""
    refresh: int = Field(8, ge=1)
    """Forwards from one look at the attention mass to the next."""
    bandwidth: Size | None = None
    """Most bytes that are moved between tiers for each forward; none: 64 blocks."""
    hysteresis: float = Field(0.1, ge=0, lt=1)
    """Share of a tier's places, those at its border, for which no two blocks change places."""
    bits: Literal[2, 4, 8] | None = None
    """KV is stored with so many bits outside hbm, which loses some of it; none: as it is."""
