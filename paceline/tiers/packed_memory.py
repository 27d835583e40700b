"""Lossy memory: in hbm blocks are as they were written, outside of it they have 8, 4 or 2 bits a value."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline.kernels.quantise import Axis, Packed, measured_error, pack, packed_nbytes, unpack
from paceline.tiers.layout import Layout, Slots
from paceline.tiers.memory import Memory
from paceline.tiers.nvme import Failure, Store
from paceline.tiers.pool import Blocks
from paceline.tiers.settings import Tier

__all__ = ["PackedMemory", "stored_nbytes"]

_MOST = 6e4
"""What infinite values become: finite in every type."""


def stored_nbytes(layout: Layout, bits: int) -> int:
    """Bytes of a packed block: codes and scales of keys, then of values. Raises `ValueError` where the head size does
    not fill bytes."""
    shape = layout.heads, layout.block_size, layout.head_dim
    return packed_nbytes(*shape, bits, Axis.channel) + packed_nbytes(*shape, bits, Axis.token)


class PackedMemory(Memory):
    """Blocks are packed on the way down and unpacked on the way up; keys have scales for each channel, values for each
    token. Going up and down again loses no more, but for rounding."""

    stored_in_place = False

    def __init__(self, layout: Layout, slots: Slots, staging: int, device: torch.device, bits: int) -> None:
        super().__init__(layout, Slots(slots.hbm, 0, 0), staging, device)
        self._bits = bits
        self._nbytes = stored_nbytes(layout, bits)
        self._stored: NDArray[np.uint8] = np.zeros((slots.dram, self._nbytes), dtype=np.uint8)

    @property
    def stored_nbytes(self) -> int:
        """Bytes of a block outside hbm."""
        return self._nbytes

    def row(self, tier: Tier, slot: int) -> int:
        """Blocks are read in place in hbm alone."""
        return slot if tier is Tier.hbm else -1

    def copy(self, source: Tier, source_slots: Blocks, target: Tier, target_slots: Blocks) -> None:
        """Pack from hbm to dram, unpack from dram to hbm."""
        if source is Tier.hbm:
            self._stored[target_slots] = self._packed(source_slots)
        else:
            self._unpack(self._stored[source_slots], target_slots)

    def stage(self, slots: Blocks, rows: Blocks) -> None:
        """Unpack slots of dram into rows of `home`."""
        self._unpack(self._stored[slots], rows)

    def save(self, source: Tier, source_slots: Blocks, store: Store, slots: Blocks) -> dict[int, Failure]:
        """Write blocks of hbm or dram into slots of nvme; gives failures by index."""
        stored = self._packed(source_slots) if source is Tier.hbm else self._stored[source_slots]
        return store.write(slots, [(row,) for row in stored])

    def load(self, store: Store, slots: Blocks, target: Tier, target_slots: Blocks) -> dict[int, Failure]:
        """Read slots of nvme into hbm or dram; gives failures by index."""
        if target is Tier.hbm:
            return self.load_rows(store, slots, target_slots)
        return store.read(slots, [(self._stored[slot],) for slot in target_slots.tolist()])

    def load_rows(self, store: Store, slots: Blocks, rows: Blocks) -> dict[int, Failure]:
        """Read slots of nvme into rows of `home`; gives failures by index."""
        stored = np.zeros((len(slots), self._nbytes), dtype=np.uint8)
        failures = store.read(slots, [(row,) for row in stored])
        self._unpack(stored, rows)
        return failures

    def grow_dram(self, slots: int) -> None:
        """Add slots to dram, beyond its budget. Nothing may be moving."""
        self._stored = np.concatenate([self._stored, np.zeros((slots, self._nbytes), dtype=np.uint8)])

    def _packed(self, rows: Blocks) -> NDArray[np.uint8]:
        """Rows of `home` as bytes `[N, nbytes]`."""
        there = torch.from_numpy(rows).to(self.home.device)
        parts: list[Tensor] = []
        for arena, axis in ((self.home.keys_SGBD, Axis.channel), (self.home.values_SGBD, Axis.token)):
            # What is no number has no code; a session that computed it is past help, others are not.
            blocks_NGBD = arena.index_select(0, there).nan_to_num(nan=0.0, posinf=_MOST, neginf=-_MOST)
            packed = pack(blocks_NGBD, self._bits, axis)
            self.error = max(self.error, measured_error(blocks_NGBD, packed).relative)
            parts += [packed.codes_NGBC, packed.step_NGX, packed.lowest_NGX]
        flat = [part.contiguous().view(torch.uint8).reshape(len(rows), -1).cpu() for part in parts]
        stored: NDArray[np.uint8] = torch.cat(flat, dim=1).numpy()
        return stored

    def _unpack(self, stored: NDArray[np.uint8], rows: Blocks) -> None:
        layout, count = self.layout, len(rows)
        heads, width = layout.heads, layout.head_dim
        codes = heads * layout.block_size * width * self._bits // 8
        places = torch.from_numpy(rows).to(self.home.device)
        begin = 0
        for arena, axis in ((self.home.keys_SGBD, Axis.channel), (self.home.values_SGBD, Axis.token)):
            scales = 4 * heads * (width if axis is Axis.channel else layout.block_size)
            bounds = np.cumsum([begin, codes, scales, scales]).tolist()
            code, step, lowest = (torch.from_numpy(stored[:, a:b].copy()) for a, b in pairwise(bounds))
            packed = Packed(
                code.view(count, heads, layout.block_size, -1),
                step.view(torch.float32).view(count, heads, -1),
                lowest.view(torch.float32).view(count, heads, -1),
                self._bits,
                axis,
            )
            arena.index_copy_(0, places, unpack(packed, layout.dtype).to(arena.device))
            begin = bounds[-1]
