"""The KV of one sequence in the layers of one decoder: growing buffers, appended to in place."""

from __future__ import annotations

from typing import Protocol, Self

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["KV", "KVError", "SequenceError", "SequenceKV"]

_LEAST = 64
"""Positions of the first buffer, and what capacities are multiples of."""


class KV(Protocol):
    """What a decoder asks of a sequence's KV: in buffers of its own (`SequenceKV`), or in blocks over memory tiers.

    A forward reserves room, writes and attends layer by layer, and then sets `length`. Setting it lower truncates.
    """

    length: int
    """Positions that hold, in all layers."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""

    def reserve(self, positions: int) -> None:
        """A pass begins that computes positions up to this; make room for them."""

    def write(self, layer: int, start: int, k_GND: Tensor, v_GND: Tensor) -> None:
        """Write positions from `start` on, for which there is room."""

    def attend(
        self, layer: int, q_HMD: Tensor, start: int, scale: float | None, window: int | None, new: range
    ) -> Tensor:
        """Attention `[1, H, M, D]` of queries at positions `start` and on over the keys up to their own; `window`
        bounds how many each may see, and None for `scale` is 1 / sqrt(D). Rows outside `new` are padding."""

    def fork(self, length: int) -> Self:
        """The first `length` positions as a sequence of its own."""

    def close(self) -> None:
        """Free everything."""


class SequenceKV:
    """Keys and values `[Hkv, capacity, D]` of every layer, of which the first `length` positions hold.

    A forward writes the positions from `length` on, layer by layer, and then sets `length`; so a forward that fails
    halfway leaves the sequence as it was. Truncation is setting `length` too. What lies beyond it is finite (zeros, or
    what was truncated), because padded attention multiplies it by zero.
    """

    __slots__ = ("_keys", "_masks", "_values", "capacity", "length")

    def __init__(self, layers: int) -> None:
        self.length = 0
        self.capacity = 0
        self._keys: list[Tensor | None] = [None] * layers
        self._values: list[Tensor | None] = [None] * layers
        self._masks: dict[int | None, Tensor] = {}
        """Of the pass of the moment, by window: all layers of a kind share one."""

    def reserve(self, positions: int) -> None:
        """Make room for so many positions; doubles, so that the copying costs O(1) a position in all."""
        self._masks.clear()
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

    def attend(
        self, layer: int, q_HMD: Tensor, start: int, scale: float | None, window: int | None, new: range
    ) -> Tensor:
        """Attention `[1, H, M, D]` of queries at positions `start` and on; `window` bounds how many keys each may see.
        Rows outside `new` are computed like all others."""
        heads, rows, _ = q_HMD.shape
        low, stop = 0 if window is None else max(0, start - window + 1), start + rows
        k, v = self.read(layer, low, stop)
        shared = k.shape[0]
        if rows == 1:
            # One query sees every key, so the query heads that share a key head can be rows of one product.
            q = q_HMD.reshape(1, shared, heads // shared, q_HMD.shape[2])
            out = scaled_dot_product_attention(q, k[None], v[None], scale=scale)
            return out.reshape(1, heads, 1, v.shape[2])
        grouped = heads != shared
        if start == 0 and (window is None or rows <= window):
            return scaled_dot_product_attention(
                q_HMD[None], k[None], v[None], is_causal=True, scale=scale, enable_gqa=grouped
            )
        mask = self._mask(range(start, stop), low, window, q_HMD)
        return scaled_dot_product_attention(
            q_HMD[None], k[None], v[None], attn_mask=mask, scale=scale, enable_gqa=grouped
        )

    def _mask(self, rows: range, low: int, window: int | None, like: Tensor) -> Tensor:
        """What is added to the scores `[rows, stop - low]`."""
        mask = self._masks.get(window)
        if mask is None:
            distance = torch.arange(rows.start, rows.stop, device=like.device)[:, None]
            distance = distance - torch.arange(low, rows.stop, device=like.device)
            hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
            mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, float("-inf"))
            self._masks[window] = mask
        return mask

    def fork(self, length: int) -> SequenceKV:
        """A copy of the first `length` positions. A plain copy: both will be written at the same positions."""
        copy = SequenceKV(len(self._keys))
        copy.reserve(length + 1)
        copy.length = length
        copy._keys = [None if old is None else _grown(old, length, copy.capacity) for old in self._keys]
        copy._values = [None if old is None else _grown(old, length, copy.capacity) for old in self._values]
        return copy

    def close(self) -> None:
        """Free the buffers."""
        self._keys, self._values = [None] * len(self._keys), [None] * len(self._values)
        self.length = self.capacity = 0
        self._masks.clear()

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, used or not."""
        return sum(held.nbytes for held in (*self._keys, *self._values) if held is not None)


def _grown(old: Tensor, length: int, capacity: int) -> Tensor:
    new = torch.zeros(old.shape[0], capacity, old.shape[2], dtype=old.dtype, device=old.device)
    new.narrow(1, 0, length).copy_(old.narrow(1, 0, length))
    return new


class KVError(RuntimeError):
    """Raised inside a pass: the KV of a sequence can't be read from `start` on, or (None) finds no room. Its cause says
    why."""

    def __init__(self, kv: KV, start: int | None) -> None:
        super().__init__(f"KV from position {start} on is lost" if start is not None else "no room for KV")
        self.kv, self.start = kv, start


class SequenceError(RuntimeError):
    """A sequence can't go on; it is to be closed. All others are as they were before the forward, or can be truncated
    to that and forwarded again."""

    def __init__(self, sequence: int, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.sequence = sequence
