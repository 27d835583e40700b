"""Memory for blocks: rows of keys and values."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline.kernels.moves import copy_blocks
from paceline.tiers.layout import Layout, Slots
from paceline.tiers.nvme import Failure, Parts, Store
from paceline.tiers.pool import Blocks
from paceline.tiers.settings import Tier

__all__ = ["Arena", "Memory"]


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


class Memory:
    """The arenas of hbm and dram.

    `home` is what attention reads: the hbm slots, then `staging` rows for blocks that are brought to be read once, and
    on the CPU the dram slots too, so that blocks of both tiers are attended in one call, where they lie. On CUDA dram
    is pinned memory of the host.
    """

    def __init__(self, layout: Layout, slots: Slots, staging: int, device: torch.device) -> None:
        self.layout, self.device = layout, device
        self.hbm, self.staging = slots.hbm, staging
        self.on_cpu = device.type == "cpu"
        if self.on_cpu:
            self.home = self.host = Arena(layout, slots.hbm + staging + slots.dram, device)
            self._base = slots.hbm + staging
        else:
            self.home = Arena(layout, slots.hbm + staging, device)
            self.host = Arena(layout, slots.dram, torch.device("cpu"), pinned=True)
            self._base = 0

    error = 0.0
    """The largest relative error that keys or values of a block got outside hbm."""
    stored_in_place = True
    """Whether blocks can be written and, on the CPU, attended in dram."""

    @property
    def stored_nbytes(self) -> int:
        """Bytes of a block outside hbm."""
        return self.layout.block_nbytes

    def row(self, tier: Tier, slot: int) -> int:
        """The row of `home` where a slot is read in place; -1: it is not."""
        if tier is Tier.hbm:
            return slot
        return self._base + slot if tier is Tier.dram and self.on_cpu else -1

    def clear(self, tier: Tier, slot: int) -> None:
        """Make a block of zeros."""
        arena, base = self._at(tier)
        arena.clear(base + slot)

    def write(self, tier: Tier, slot: int, offset: int, k_GnD: Tensor, v_GnD: Tensor) -> None:
        """Write tokens into a block of hbm or dram."""
        arena, base = self._at(tier)
        arena.write(base + slot, offset, k_GnD, v_GnD)

    def copy(self, source: Tier, source_slots: Blocks, target: Tier, target_slots: Blocks) -> None:
        """Copy slots between hbm and dram. On CUDA it is asynchronous, in the present stream."""
        held, first = self._at(source)
        into, base = self._at(target)
        _copy(held, source_slots + first, into, target_slots + base)

    def stage(self, slots: Blocks, rows: Blocks) -> None:
        """Copy slots of dram into rows of `home`. On CUDA it is asynchronous, in the present stream."""
        _copy(self.host, slots + self._base, self.home, rows)

    def save(self, source: Tier, source_slots: Blocks, store: Store, slots: Blocks) -> dict[int, Failure]:
        """Write blocks of hbm or dram into slots of nvme; gives failures by index."""
        arena, base = self._at(source)
        rows = source_slots + base
        if arena.device.type == "cpu":
            return store.write(slots, [_halves(arena, row) for row in rows.tolist()])
        there = torch.from_numpy(rows).to(arena.device)
        keys, values = arena.keys_SGBD.index_select(0, there).cpu(), arena.values_SGBD.index_select(0, there).cpu()
        return store.write(slots, _pairs(keys, values))

    def load(self, store: Store, slots: Blocks, target: Tier, target_slots: Blocks) -> dict[int, Failure]:
        """Read slots of nvme into hbm or dram; gives failures by index."""
        arena, base = self._at(target)
        if arena is self.home:
            return self.load_rows(store, slots, target_slots + base)
        return store.read(slots, [_halves(arena, base + slot) for slot in target_slots.tolist()])

    def load_rows(self, store: Store, slots: Blocks, rows: Blocks) -> dict[int, Failure]:
        """Read slots of nvme into rows of `home`; gives failures by index."""
        home = self.home
        if self.on_cpu:
            return store.read(slots, [_halves(home, row) for row in rows.tolist()])
        shape = (len(slots), *home.keys_SGBD.shape[1:])
        keys, values = (torch.empty(shape, dtype=self.layout.dtype, pin_memory=True) for _ in range(2))
        failures = store.read(slots, _pairs(keys, values))
        places = torch.from_numpy(rows).to(home.device)
        home.keys_SGBD.index_copy_(0, places, keys.to(home.device))
        home.values_SGBD.index_copy_(0, places, values.to(home.device))
        return failures

    def grow_dram(self, slots: int) -> None:
        """Add slots to dram, beyond its budget. Nothing may be moving."""
        self.host.grow(slots)

    @property
    def staging_nbytes(self) -> int:
        """Bytes of the staging rows, which no budget counts."""
        return self.staging * self.layout.block_nbytes

    def _at(self, tier: Tier) -> tuple[Arena, int]:
        """The arena of hbm or dram, and the row of its first slot."""
        if tier is Tier.hbm:
            return self.home, 0
        if tier is Tier.dram:
            return self.host, self._base
        raise ValueError("blocks of nvme lie in no arena")


def _copy(held: Arena, source: Blocks, into: Arena, target: Blocks) -> None:
    copy_blocks(held.keys_SGBD, source, into.keys_SGBD, target)
    copy_blocks(held.values_SGBD, source, into.values_SGBD, target)


def _halves(arena: Arena, row: int) -> Parts:
    """Bytes of the keys and of the values of a row of host memory, as they lie there."""
    return _bytes(arena.keys_SGBD[row]), _bytes(arena.values_SGBD[row])


def _pairs(keys_NGBD: Tensor, values_NGBD: Tensor) -> Sequence[Parts]:
    return [(_bytes(keys), _bytes(values)) for keys, values in zip(keys_NGBD, values_NGBD, strict=True)]


def _bytes(tensor: Tensor) -> NDArray[np.uint8]:
    flat: NDArray[np.uint8] = tensor.reshape(-1).view(torch.uint8).numpy()
    return flat
