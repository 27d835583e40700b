"""The merge of many parts on CUDA in one kernel: a program for each head and row."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

__all__ = ["weighted"]

_PARTS = 32
"""Parts that a program takes at a time."""


@triton.jit  # type: ignore[untyped-decorator]
def _weighted(
    out_PXD: tl.tensor,
    lse_PX: tl.tensor,
    merged_XD: tl.tensor,
    merged_X: tl.tensor,
    parts: tl.tensor,
    items: tl.tensor,
    width: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    item = tl.program_id(0)
    part_P = tl.arange(0, PARTS)
    channel_D = tl.arange(0, WIDTH)
    in_width_D = channel_D < width
    top = -3.0e38
    for first in range(0, parts, PARTS):
        number_P = first + part_P
        lse_P = tl.load(lse_PX + number_P * items + item, mask=number_P < parts, other=float("-inf"))
        top = tl.maximum(top, tl.max(lse_P, axis=0))
    total = 0.0
    sum_D = tl.zeros([WIDTH], tl.float32)
    for first in range(0, parts, PARTS):
        number_P = first + part_P
        there_P = number_P < parts
        lse_P = tl.load(lse_PX + number_P * items + item, mask=there_P, other=float("-inf"))
        weight_P = tl.exp(lse_P - top)
        total += tl.sum(weight_P, axis=0)
        at_PD = (number_P * items + item)[:, None] * width + channel_D[None, :]
        out_PD = tl.load(out_PXD + at_PD, mask=there_P[:, None] & in_width_D[None, :], other=0.0)
        sum_D += tl.sum(out_PD * weight_P[:, None], axis=0)
    seen = total > 0
    tl.store(merged_X + item, tl.where(seen, top + tl.log(tl.where(seen, total, 1.0)), float("-inf")))
    tl.store(merged_XD + item * width + channel_D, sum_D / tl.where(seen, total, 1.0), mask=in_width_D)


def weighted(out_PXD: Tensor, lse_PX: Tensor) -> tuple[Tensor, Tensor]:
    """Sum P parts, float32 and contiguous, weighted by e^(lse - L): `[X, D]` and L `[X]`. A function of the parts and
    their order alone."""
    parts, items, width = out_PXD.shape
    merged_XD = torch.empty(items, width, dtype=torch.float32, device=out_PXD.device)
    merged_X = torch.empty(items, dtype=torch.float32, device=out_PXD.device)
    _weighted[(items,)](
        out_PXD, lse_PX, merged_XD, merged_X, parts, items, width, _PARTS, 1 << (width - 1).bit_length()
    )
    return merged_XD, merged_X
