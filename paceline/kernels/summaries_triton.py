"""Summaries of blocks on CUDA in one kernel: a program for each block and key head reads its keys once."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

__all__ = ["summarise"]


@triton.jit  # type: ignore[untyped-decorator]
def _summarise(
    keys_NGBD: tl.tensor,
    counts_N: tl.tensor,
    minimum_NGD: tl.tensor,
    maximum_NGD: tl.tensor,
    mean_NGD: tl.tensor,
    radius_NG: tl.tensor,
    reach_NG: tl.tensor,
    heads: tl.constexpr,
    block: tl.constexpr,
    width: tl.constexpr,
    up: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    number = tl.program_id(0)
    pair = number * heads + tl.program_id(1)
    token_B = tl.arange(0, BLOCK)
    channel_D = tl.arange(0, WIDTH)
    in_width_D = channel_D < width
    count = tl.load(counts_N + number)
    valid_BD = (token_B < count)[:, None] & in_width_D[None, :]
    at_BD = (pair.to(tl.int64) * block + token_B)[:, None] * width + channel_D[None, :]
    keys_BD = tl.load(keys_NGBD + at_BD, mask=valid_BD, other=0.0).to(tl.float32)
    some = count > 0
    low_D = tl.where(some & in_width_D, tl.min(tl.where(valid_BD, keys_BD, float("inf")), axis=0), 0.0)
    high_D = tl.where(some & in_width_D, tl.max(tl.where(valid_BD, keys_BD, float("-inf")), axis=0), 0.0)
    # Double precision for the mean and the distances, as in the torch reference.
    wide_BD = keys_BD.to(tl.float64)
    mean_D = (tl.sum(wide_BD, axis=0) / tl.maximum(count, 1).to(tl.float64)).to(tl.float32)
    off_BD = tl.where(valid_BD, wide_BD - mean_D.to(tl.float64)[None, :], 0.0)
    radius = tl.sqrt(tl.max(tl.sum(off_BD * off_BD, axis=1), axis=0)) * up
    corner_D = tl.maximum(tl.abs(low_D), tl.abs(high_D)).to(tl.float64)
    reach = tl.sqrt(tl.sum(corner_D * corner_D, axis=0)) * up
    at_D = pair * width + channel_D
    tl.store(minimum_NGD + at_D, low_D, mask=in_width_D)
    tl.store(maximum_NGD + at_D, high_D, mask=in_width_D)
    tl.store(mean_NGD + at_D, mean_D, mask=in_width_D)
    tl.store(radius_NG + pair, radius.to(tl.float32))
    tl.store(reach_NG + pair, reach.to(tl.float32))


def summarise(keys_NGBD: Tensor, counts_N: Tensor, up: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Minimum, maximum and mean `[N, G, D]`, radius and reach `[N, G]`, float32, of contiguous keys; `up` is the factor
    by which norms are rounded up."""
    count, heads, block, width = keys_NGBD.shape
    new = keys_NGBD.new_empty(0, dtype=torch.float32)
    low, high, mean = (new.new_empty(count, heads, width) for _ in range(3))
    radius, reach = (new.new_empty(count, heads) for _ in range(2))
    if count:
        _summarise[(count, heads)](
            keys_NGBD,
            counts_N,
            low,
            high,
            mean,
            radius,
            reach,
            heads,
            block,
            width,
            up,
            1 << (block - 1).bit_length(),
            1 << (width - 1).bit_length(),
        )
    return low, high, mean, radius, reach
