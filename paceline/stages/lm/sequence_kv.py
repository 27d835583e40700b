"""The KV of one sequence in the layers of one decoder: growing buffers, appended to in place."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["SequenceKV"]

_LEAST = 64
"""Positions of the first buffer, and what capacities are multiples of."""


class SequenceKV:
    """Keys and values `[Hkv, capacity, D]` of every layer, of which the first `length` positions hold.

    A forward writes the positions from `length` on, layer by layer, and then sets `length`; so a forward that fails
    halfway leaves the sequence as it was. Truncation is setting `length` too. What lies beyond it is finite (zeros, or
    what was truncated), because padded attention multiplies it by zero.
    """

    __slots__ = ("_keys", "_values", "capacity", "length")

    def __init__(self, layers: int) -> None:
        self.length = 0
        self.capacity = 0
        self._keys: list[Tensor | None] = [None] * layers
        self._values: list[Tensor | None] = [None] * layers

    def reserve(self, positions: int) -> None:
        """Make room for so many positions; doubles, so that the copying costs O(1) a position in all."""
        if positions <= self.capacity:
            return
        wanted = max(positions, 2 * self.capacity, _LEAST)
        self.capacity = -(-wanted // _LEAST) * _LEAST
        for held in (self._keys, self._values):
            held[:] = [None if old is None else _grown(old, self.length, self.capacity) for old in held]

    def write(self, layer: int, start: int, k_HND: Tensor, v_HND: Tensor) -> None:
        """Write positions from `start` on, for which there is room."""
        keys, values = self._keys[layer], self._values[layer]
        if keys is None or values is None:
            keys = k_HND.new_zeros(k_HND.shape[0], self.capacity, k_HND.shape[2])
            values = v_HND.new_zeros(v_HND.shape[0], self.capacity, v_HND.shape[2])
            self._keys[layer], self._values[layer] = keys, values
        count = k_HND.shape[1]
        keys.narrow(1, start, count).copy_(k_HND)
        values.narrow(1, start, count).copy_(v_HND)

    def read(self, layer: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Views `[Hkv, stop - start, D]` of keys and values. Raises `LookupError` where the layer never wrote."""
        keys, values = self._keys[layer], self._values[layer]
        if keys is None or values is None:
            raise LookupError(f"layer {layer} of the run has written no KV")
        return keys.narrow(1, start, stop - start), values.narrow(1, start, stop - start)

    def fork(self, length: int) -> SequenceKV:
        """A copy of the first `length` positions. A plain copy: both will be written at the same positions."""
        copy = SequenceKV(len(self._keys))
        copy.reserve(length + 1)
        copy.length = length
        copy._keys = [None if old is None else _grown(old, length, copy.capacity) for old in self._keys]
        copy._values = [None if old is None else _grown(old, length, copy.capacity) for old in self._values]
        return copy

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, used or not."""
        return sum(held.nbytes for held in (*self._keys, *self._values) if held is not None)


def _grown(old: Tensor, length: int, capacity: int) -> Tensor:
    new = torch.zeros(old.shape[0], capacity, old.shape[2], dtype=old.dtype, device=old.device)
    new.narrow(1, 0, length).copy_(old.narrow(1, 0, length))
    return new
