"""The shape of a block, and how many of them a budget holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from paceline.tiers.errors import TierError

__all__ = ["Budget", "Layout", "Slots"]


@dataclass(frozen=True, slots=True)
class Layout:
    """What the blocks of one rank look like: keys and values `[heads, block_size, head_dim]` each, of one layer."""

    layers: int
    heads: int
    """KV heads of the rank."""
    block_size: int
    """Tokens in a block."""
    head_dim: int
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "block_size", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it has to be at least 1")
        if not self.dtype.is_floating_point:
            raise ValueError(f"KV of {self.dtype} is not supported; take a floating-point type")

    @property
    def half_nbytes(self) -> int:
        """Bytes of the keys of a block, and as many of its values."""
        return self.heads * self.block_size * self.head_dim * self.dtype.itemsize

    @property
    def block_nbytes(self) -> int:
        """Bytes of a block, keys and values."""
        return 2 * self.half_nbytes

    def blocks(self, positions: int) -> int:
        """How many blocks of one layer so many positions take."""
        return -(-positions // self.block_size)


@dataclass(frozen=True, slots=True)
class Slots:
    """How many blocks each tier holds."""

    hbm: int
    dram: int
    nvme: int

    @property
    def total(self) -> int:
        """Blocks of all tiers: a block lies in one of them at a time."""
        return self.hbm + self.dram + self.nvme


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes of each tier of one rank. With `nvme` there is a folder, `path`, that the rank's file is made in."""

    hbm: int
    dram: int = 0
    nvme: int = 0
    path: Path | None = None

    def __post_init__(self) -> None:
        if min(self.hbm, self.dram, self.nvme) < 0:
            raise ValueError(f"budgets are bytes, 0 or more, not hbm {self.hbm}, dram {self.dram}, nvme {self.nvme}")
        if self.nvme and self.path is None:
            raise ValueError("nvme has a size but no path; name the folder that the file is to lie in")

    def slots(self, layout: Layout, stored_nbytes: int | None = None, least: int = 2) -> Slots:
        """Blocks of each tier; `stored_nbytes` bytes is a block outside hbm, if not as many as in it.

        Raises `TierError` where hbm holds fewer than `least` blocks of each layer.
        """
        size = layout.block_nbytes
        stored = stored_nbytes or size
        hbm = self.hbm // size
        if hbm < least * layout.layers:
            raise TierError(
                f"hbm of {self.hbm} bytes holds {hbm} blocks of {size} bytes, but {least} for each of {layout.layers} "
                f"layers are needed; raise hbm to {least * layout.layers * size} bytes or take a smaller block_size"
            )
        return Slots(hbm, self.dram // stored, self.nvme // _padded(stored))


def _padded(nbytes: int, page: int = 4096) -> int:
    return -(-nbytes // page) * page
