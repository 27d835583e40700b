"""Decoding over paged blocks on CUDA: one query row for each head, split over programs as in flash-decoding.

A program takes one key head and a run of blocks, several blocks at a time, and the query heads that share the key head
are the rows of its products. Each block's log-sum-exp is stored on the way (about a hundredth of the bytes that are
read), the runs are merged afterwards. Imported only where Triton is.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

from paceline.kernels.merge import Partial, reduce_blocks

__all__ = ["paged_decode", "suits"]

_TILE = 64
"""Tokens of a tile, about: enough rows for the tensor cores."""
_PROGRAMS = 1024
"""Programs to aim at: some for each of a large GPU's processors."""


@triton.jit  # type: ignore[untyped-decorator]
def _decode(
    q_HD: tl.tensor,
    keys_SGBD: tl.tensor,
    values_SGBD: tl.tensor,
    slots_N: tl.tensor,
    starts_N: tl.tensor,
    counts_N: tl.tensor,
    out_PHD: tl.tensor,
    lse_PH: tl.tensor,
    block_lse_HN: tl.tensor,
    blocks: tl.tensor,
    query: tl.tensor,
    oldest: tl.tensor,
    scale: tl.tensor,
    slot_stride: tl.tensor,
    head_stride: tl.tensor,
    token_stride: tl.tensor,
    run: tl.tensor,
    heads: tl.constexpr,
    rows: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
    tile: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """`rows` query heads of a key head are padded to `ROWS`, `width` channels to `WIDTH`; `run` blocks a program,
    `tile` blocks at a time. Keys at positions <= `query` and >= `oldest` are seen."""
    part = tl.program_id(0)
    group = tl.program_id(1)
    row_R = tl.arange(0, ROWS)
    channel_D = tl.arange(0, WIDTH)
    in_row_R = row_R < rows
    in_width_D = channel_D < width
    head_R = group * rows + row_R
    q_RD = tl.load(
        q_HD + head_R[:, None] * width + channel_D[None, :], mask=in_row_R[:, None] & in_width_D[None, :], other=0.0
    )
    token_K = tl.arange(0, tile * block)
    tile_T = tl.arange(0, tile)
    top_R = tl.full([ROWS], float("-inf"), tl.float32)
    total_R = tl.zeros([ROWS], tl.float32)
    sum_RD = tl.zeros([ROWS, WIDTH], tl.float32)
    for step in range(0, run, tile):
        first = part * run + step
        number_K = first + token_K // block
        index_K = token_K % block
        in_run_K = (step + token_K // block < run) & (number_K < blocks)
        slot_K = tl.load(slots_N + number_K, mask=in_run_K, other=0)
        start_K = tl.load(starts_N + number_K, mask=in_run_K, other=0)
        count_K = tl.load(counts_N + number_K, mask=in_run_K, other=0)
        position_K = start_K + index_K
        seen_K = in_run_K & (index_K < count_K) & (position_K <= query) & (position_K >= oldest)
        place_K = slot_K * slot_stride + group * head_stride + index_K * token_stride
        place_KD = place_K[:, None] + channel_D[None, :]
        valid_KD = seen_K[:, None] & in_width_D[None, :]
        k_KD = tl.load(keys_SGBD + place_KD, mask=valid_KD, other=0.0)
        scores_RK = tl.dot(q_RD, tl.trans(k_KD).to(q_RD.dtype), input_precision="ieee") * scale
        scores_RK = tl.where(seen_K[None, :], scores_RK, float("-inf"))
        # Of each block by itself.
        scores_RTB = tl.reshape(scores_RK, (ROWS, tile, block))
        block_top_RT = tl.maximum(tl.max(scores_RTB, axis=2), -3.0e38)
        block_sum_RT = tl.sum(tl.exp(scores_RTB - block_top_RT[:, :, None]), axis=2)
        block_lse_RT = tl.where(block_sum_RT > 0, block_top_RT + tl.log(tl.maximum(block_sum_RT, 1.0)), float("-inf"))
        number_T = first + tile_T
        in_run_T = (step + tile_T < run) & (number_T < blocks)
        tl.store(
            block_lse_HN + head_R[:, None] * blocks + number_T[None, :],
            block_lse_RT,
            mask=in_row_R[:, None] & in_run_T[None, :],
        )
        # All of them together with what came before.
        new_R = tl.maximum(tl.maximum(top_R, tl.max(scores_RK, axis=1)), -3.0e38)
        fade_R = tl.exp(top_R - new_R)
        weight_RK = tl.exp(scores_RK - new_R[:, None])
        total_R = total_R * fade_R + tl.sum(weight_RK, axis=1)
        v_KD = tl.load(values_SGBD + place_KD, mask=valid_KD, other=0.0)
        sum_RD = sum_RD * fade_R[:, None] + tl.dot(weight_RK.to(v_KD.dtype), v_KD, input_precision="ieee")
        top_R = new_R
    lse_R = tl.where(total_R > 0, top_R + tl.log(tl.maximum(total_R, 1e-30)), float("-inf"))
    mean_RD = sum_RD / tl.where(total_R > 0, total_R, 1.0)[:, None]
    at_R = part * heads + head_R
    tl.store(lse_PH + at_R, lse_R, mask=in_row_R)
    tl.store(
        out_PHD + at_R[:, None] * width + channel_D[None, :], mean_RD, mask=in_row_R[:, None] & in_width_D[None, :]
    )


def suits(q_HMD: Tensor, keys_SGBD: Tensor, values_SGBD: Tensor, keep_blocks: bool = False) -> bool:
    """Whether the kernel can compute this: one row, a block of a power of two, channels side by side, no float64."""
    block = keys_SGBD.shape[2]
    return (
        q_HMD.shape[1] == 1
        and block & (block - 1) == 0
        # A product has at least 16 keys.
        and not (keep_blocks and block < 16)
        and keys_SGBD.stride() == values_SGBD.stride()
        and keys_SGBD.stride(3) == 1
        and keys_SGBD.dtype == values_SGBD.dtype
        and torch.float64 not in (q_HMD.dtype, keys_SGBD.dtype)
    )


def paged_decode(
    q_HMD: Tensor,
    keys_SGBD: Tensor,
    values_SGBD: Tensor,
    slots_N: Tensor,
    starts_N: Tensor,
    counts_N: Tensor,
    query_start: int,
    scale: float,
    window: int | None = None,
    keep_blocks: bool = False,
) -> Partial:
    """`paged_attention` for what `suits`. With `keep_blocks` every program takes one block, so that a block's output
    does not depend on its neighbours; otherwise a run of them, which is faster and depends on N within rounding.

    Products are as precise as the KV: float32 for float32, and for 16 bits the weights are rounded to 16 bits, too.
    """
    heads, _, width = q_HMD.shape
    count, shared, block = len(slots_N), keys_SGBD.shape[1], keys_SGBD.shape[2]
    rows = heads // shared
    tile = 1 if keep_blocks else max(1, _TILE // block)
    run = 1 if keep_blocks else tile * max(1, count * shared // (_PROGRAMS * tile))
    parts = -(-count // run)
    device = q_HMD.device
    out_PHMD = torch.empty(parts, heads, 1, width, dtype=torch.float32, device=device)
    lse_PH = torch.empty(parts, heads, dtype=torch.float32, device=device)
    block_lse_HMN = torch.empty(heads, 1, count, dtype=torch.float32, device=device)
    # A product of 16-bit numbers is exact in float32, so queries stay as narrow as they came if keys are, too.
    q_HMD = q_HMD if q_HMD.dtype == keys_SGBD.dtype else q_HMD.float()
    if parts:
        _decode[(parts, shared)](
            q_HMD.contiguous(),
            keys_SGBD,
            values_SGBD,
            slots_N,
            starts_N,
            counts_N,
            out_PHMD,
            lse_PH,
            block_lse_HMN,
            count,
            query_start,
            -(2**62) if window is None else query_start - window + 1,
            scale,
            keys_SGBD.stride(0),
            keys_SGBD.stride(1),
            keys_SGBD.stride(2),
            run,
            heads,
            rows,
            width,
            block,
            tile,
            # A product on the tensor cores has at least 16 rows and channels.
            max(16, _power_of_two(rows)),
            max(16, _power_of_two(width)),
        )
    lse_HMP = lse_PH.t()[:, None]
    if keep_blocks:
        out_HMD, lse_HM = reduce_blocks(out_PHMD, lse_HMP, starts_N)
        return Partial(out_HMD, lse_HM, block_lse_HMN, starts_N, out_PHMD)
    # Runs are merged in the order of the call.
    out_HMD, lse_HM = reduce_blocks(out_PHMD, lse_HMP, torch.arange(parts))
    return Partial(out_HMD, lse_HM, block_lse_HMN, starts_N)


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
