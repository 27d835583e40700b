"""What is remembered of a block's keys, so that a query's scores against them can be bounded without reading them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from paceline.kernels.triton_kernels import triton_kernels

__all__ = ["Summaries", "summarise"]

_UP = 1.0 + 2.0**-20
"""Covers the rounding of a norm to float32, so that a radius is never too small."""


@dataclass(frozen=True, slots=True)
class Summaries:
    """Of N blocks and G heads, float32: three vectors and two numbers for the `[B, D]` keys of each. The first axis may
    also be that of slots, most of them unused; `put` and `take` go between the two."""

    minimum_NGD: Tensor
    """The box that the keys lie in: lowest value of every channel."""
    maximum_NGD: Tensor
    mean_NGD: Tensor
    """Their mean, which is the centre of the ball, too."""
    radius_NG: Tensor
    """No key is further away from the mean."""
    reach_NG: Tensor
    """No corner of the box, and so no key, is further away from 0. Rounding errors are proportional to it."""
    count_N: Tensor
    """Valid keys, float32; of a block that has none, all else is 0."""

    def __len__(self) -> int:
        return len(self.count_N)

    @classmethod
    def empty(cls, slots: int, heads: int, width: int, device: str | torch.device = "cpu") -> Summaries:
        """Room for the summaries of so many blocks, all of which count 0 keys."""
        with torch.inference_mode(False):
            vectors = [torch.zeros(slots, heads, width, device=device) for _ in range(3)]
            numbers = [torch.zeros(slots, heads, device=device) for _ in range(2)]
            return cls(vectors[0], vectors[1], vectors[2], numbers[0], numbers[1], torch.zeros(slots, device=device))

    @classmethod
    def cat(cls, parts: Sequence[Summaries]) -> Summaries:
        """Blocks of several summaries one after another. Raises `ValueError` where there are none."""
        if not parts:
            raise ValueError("there are no summaries to concatenate")
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def take(self, slots_N: Tensor) -> Summaries:
        """The summaries in these slots, int64 `[N]`: a copy."""
        return Summaries(*(getattr(self, field.name).index_select(0, slots_N) for field in fields(self)))

    def put(self, slots_N: Tensor, others: Summaries) -> None:
        """Write the summaries of N blocks into different slots, int64 `[N]`."""
        for field in fields(self):
            getattr(self, field.name).index_copy_(0, slots_N, getattr(others, field.name))

    def to(self, device: str | torch.device) -> Summaries:
        """The same on another device."""
        return Summaries(*(getattr(self, field.name).to(device) for field in fields(self)))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(int(getattr(self, field.name).nbytes) for field in fields(self))


@torch.no_grad()
def summarise(keys_NGBD: Tensor, counts_N: Tensor) -> Summaries:
    """Summarise the first `counts_N` (int64 `[N]`, 0 to B) keys of each block; what lies behind them may be anything.

    A summary holds as long as no key of its block changes. Keys of 16 bits are exact in float32, float64 is rounded.
    """
    triton = triton_kernels("summaries") if keys_NGBD.device.type == "cuda" else None
    if triton is not None:
        low, high, mean, radius, reach = triton.summarise(keys_NGBD.contiguous(), counts_N, _UP)
        return Summaries(low, high, mean, radius, reach, counts_N.to(torch.float32))
    keys_NGBD = keys_NGBD.to(torch.float32)
    block = keys_NGBD.shape[2]
    unused_NB = torch.arange(block, device=keys_NGBD.device) >= counts_N[:, None]
    unused = unused_NB[:, None, :, None]
    minimum_NGD = keys_NGBD.masked_fill(unused, float("inf")).amin(dim=2)
    maximum_NGD = keys_NGBD.masked_fill(unused, float("-inf")).amax(dim=2)
    none = (counts_N == 0)[:, None, None]
    minimum_NGD.masked_fill_(none, 0.0)
    maximum_NGD.masked_fill_(none, 0.0)
    # In double precision the mean and the distances are right to the last bit of float32.
    count = counts_N.clamp(min=1).to(torch.float64)[:, None, None]
    valid_NGBD = keys_NGBD.masked_fill(unused, 0.0).to(torch.float64)
    mean_NGD = (valid_NGBD.sum(dim=2) / count).to(torch.float32)
    distance_NGBD = (valid_NGBD - mean_NGD[:, :, None].to(torch.float64)).masked_fill_(unused, 0.0)
    radius_NG = distance_NGBD.square_().sum(dim=3).amax(dim=2).sqrt_() * _UP
    corner_NGD = torch.maximum(minimum_NGD.abs(), maximum_NGD.abs()).to(torch.float64)
    reach_NG = corner_NGD.square_().sum(dim=2).sqrt_() * _UP
    return Summaries(
        minimum_NGD,
        maximum_NGD,
        mean_NGD,
        radius_NG.to(torch.float32),
        reach_NG.to(torch.float32),
        counts_N.to(torch.float32),
    )
