"""Memory for blocks: rows of keys and values."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

from paceline.tiers.layout import Layout

__all__ = ["Arena"]


class Arena:
    """Keys and values `[S, G, B, D]` each. On the CPU their pages are taken with their first use."""

    __slots__ = ("device", "keys_SGBD", "layout", "pinned", "rows", "values_SGBD")

    def __init__(self, layout: Layout, rows: int, device: torch.device, pinned: bool = False) -> None:
        self.layout, self.rows, self.device, self.pinned = layout, rows, device, pinned
        self.keys_SGBD, self.values_SGBD = self._new(rows), self._new(rows)

    def _new(self, rows: int) -> Tensor:
        shape = (rows, self.layout.heads, self.layout.block_size, self.layout.head_dim)
        if self.device.type == "cpu" and not self.pinned and rows:
            # Pages of a fresh map are zeros that take no memory until they are used.
            fresh = mmap.mmap(-1, rows * self.layout.half_nbytes)
            with torch.inference_mode(False):
                return torch.frombuffer(fresh, dtype=self.layout.dtype).view(shape)
        # A tensor that is made in inference mode could not be written outside of it.
        with torch.inference_mode(False):
            return torch.zeros(shape, dtype=self.layout.dtype, device=self.device, pin_memory=self.pinned)

    def clear(self, row: int) -> None:
        """Make a row zeros: nothing of who had it before is left, not even where no token is valid."""
        self.keys_SGBD[row].zero_()
        self.values_SGBD[row].zero_()

    def write(self, row: int, offset: int, k_GnD: Tensor, v_GnD: Tensor) -> None:
        """Write tokens into a row."""
        count = k_GnD.shape[1]
        self.keys_SGBD[row].narrow(1, offset, count).copy_(k_GnD)
        self.values_SGBD[row].narrow(1, offset, count).copy_(v_GnD)

    def grow(self, rows: int) -> None:
        """Add rows behind the present ones, by a copy: nothing may be moving meanwhile."""
        keys, values = self._new(self.rows + rows), self._new(self.rows + rows)
        keys[: self.rows], values[: self.rows] = self.keys_SGBD, self.values_SGBD
        self.keys_SGBD, self.values_SGBD = keys, values
        self.rows += rows

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.keys_SGBD.nbytes + self.values_SGBD.nbytes
