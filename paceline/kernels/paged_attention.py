"""Attention over blocks that lie anywhere in an arena, giving the log-sum-exp of every block beside the output.

This file holds the torch reference, which runs on every device. Decoding on CUDA goes to a Triton kernel of the same
signature, chosen by the device of the tensors.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from paceline.kernels.merge import Partial, merge, reduce_blocks
from paceline.kernels.scratch import gather
from paceline.kernels.triton_kernels import triton_kernels

__all__ = ["KEPT_ROWS", "Partial", "paged_attention", "paged_attention_reference"]

KEPT_ROWS = 16
"""Up to so many query rows, the output of every block is kept unless the caller says otherwise: it is then not much
larger than the KV that it was computed from."""

_PIECE = 1 << 20
"""Values in flight; longer calls go piece by piece, so that memory is bounded and what was gathered stays cached."""

_LEAST = torch.finfo(torch.float32).min


@torch.no_grad()
def paged_attention(
    q_HMD: Tensor,
    keys_SGBD: Tensor,
    values_SGBD: Tensor,
    slots_N: Tensor,
    starts_N: Tensor,
    counts_N: Tensor,
    query_start: int,
    scale: float,
    window: int | None = None,
    keep_blocks: bool | None = None,
) -> Partial:
    """Attention of M query rows over N blocks of one layer.

    `q_HMD` `[H, M, D]`: row m is position `query_start + m`. `keys_SGBD`, `values_SGBD` `[S, G, B, D]`: the arena;
    query head h reads key head h // (H / G). `slots_N`, `starts_N`, `counts_N` int64 `[N]`: in which slot a block lies,
    position of its first token, how many of its tokens are valid; what lies behind them may be anything, NaN included.
    A row sees the valid keys at positions up to its own and, with a `window`, only the last so many, its own included.

    Computes in float32, or in float64 where `q_HMD` is. `keep_blocks`: whether the partial keeps the output of every
    block; None: up to `KEPT_ROWS` rows on the CPU, and not on other devices.

    Where blocks are kept, on the CPU at one thread count and for D a multiple of 8, a block's own `block_lse_HMN` and
    `block_out_NHMD` have the same bits whatever slot it lies in and whatever other blocks are in the call, and by
    `merge` the output has the same bits however the blocks were spread over calls. Where they are not kept, that holds
    for calls over the same blocks.

    Raises `ValueError` for shapes that don't fit together, or a window below 1.
    """
    _check(q_HMD, keys_SGBD, values_SGBD, slots_N, starts_N, counts_N, window)
    if keep_blocks is None:
        keep_blocks = q_HMD.shape[1] <= KEPT_ROWS and q_HMD.device.type == "cpu"
    triton = triton_kernels("paged_attention") if q_HMD.device.type == "cuda" else None
    if triton is not None and triton.suits(q_HMD, keys_SGBD, values_SGBD, keep_blocks):
        decoded: Partial = triton.paged_decode(
            q_HMD, keys_SGBD, values_SGBD, slots_N, starts_N, counts_N, query_start, scale, window, keep_blocks
        )
        return decoded
    return paged_attention_reference(
        q_HMD, keys_SGBD, values_SGBD, slots_N, starts_N, counts_N, query_start, scale, window, keep_blocks
    )


def paged_attention_reference(
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
    """`paged_attention` in torch, on any device, for callers that have checked and know no gradients."""
    heads, rows, width = q_HMD.shape
    count, shared, block = len(slots_N), keys_SGBD.shape[1], keys_SGBD.shape[2]
    dtype = torch.promote_types(q_HMD.dtype, torch.float32)
    q_GRD = (q_HMD.to(dtype) * scale).reshape(shared, heads // shared * rows, width)
    # A piece depends on the shapes of a row and a block alone, so it is cut at the same places in every call.
    piece = max(1, _PIECE // (shared * block * width * 2 + heads * rows * block))
    # Where there is no block at all, keeping them costs nothing.
    out_NGRD = q_GRD.new_empty(count if keep_blocks else 0, *q_GRD.shape)
    lse_NGR = q_GRD.new_empty(out_NGRD.shape[:3])
    parts = []
    for low in range(0, count, piece):
        some = slice(low, low + piece)
        starts_n, counts_n = starts_N[some], counts_N[some]
        keys_nGBD = gather("keys", keys_SGBD, slots_N[some], dtype)
        values_nGBD = gather("values", values_SGBD, slots_N[some], dtype)
        hidden_nMB = _hidden(starts_n, counts_n, rows, block, query_start, window)
        _clear(values_nGBD, counts_n)
        if keep_blocks:
            _blocks(q_GRD, keys_nGBD, values_nGBD, hidden_nMB, out_NGRD[some], lse_NGR[some])
        else:
            out_HMD, lse_HM, block_lse_HMn = _dense(q_GRD, keys_nGBD, values_nGBD, hidden_nMB, rows)
            parts.append(Partial(out_HMD, lse_HM, block_lse_HMn, starts_n))
    if parts:
        return merge(parts)
    block_out_NHMD = out_NGRD.view(count, heads, rows, width)
    block_lse_HMN = lse_NGR.view(count, heads, rows).permute(1, 2, 0)
    out_HMD, lse_HM = reduce_blocks(block_out_NHMD, block_lse_HMN, starts_N)
    return Partial(out_HMD, lse_HM, block_lse_HMN, starts_N, block_out_NHMD)


def _blocks(
    q_GRD: Tensor,
    keys_NGBD: Tensor,
    values_NGBD: Tensor,
    hidden_NMB: Tensor | None,
    out_NGRD: Tensor,
    lse_NGR: Tensor,
) -> None:
    """Write the output and the log-sum-exp of each block by itself.

    Products are batched over (block, key head), so a block meets the same instructions in every call.
    """
    count, shared, block, width = keys_NGBD.shape
    pairs, group_rows = count * shared, q_GRD.shape[1]
    q_PRD = q_GRD.expand(count, *q_GRD.shape).reshape(pairs, group_rows, width)
    scores_PRB = _batched(q_PRD, keys_NGBD.view(pairs, block, width).transpose(1, 2))
    if hidden_NMB is not None:
        rows = hidden_NMB.shape[1]
        scores_PRB.view(count, shared, group_rows // rows, rows, block).masked_fill_(
            hidden_NMB[:, None, None], float("-inf")
        )
    # Lower than any score: where all are hidden the differences are -inf and not NaN.
    top_PR = scores_PRB.amax(dim=2, keepdim=True).clamp_min_(_LEAST)
    weight_PRB = scores_PRB.sub_(top_PR).exp_()
    total_PR = weight_PRB.sum(dim=2, keepdim=True)
    torch.add(torch.log(total_PR), top_PR, out=lse_NGR.view(pairs, group_rows, 1))
    out_PRD = out_NGRD.view(pairs, group_rows, width)
    # The largest score adds 1, so a total is at least 1, or 0 where all is hidden.
    torch.div(_batched(weight_PRB, values_NGBD.view(pairs, block, width)), total_PR.clamp_min_(1.0), out=out_PRD)


def _batched(left_PIK: Tensor, right_PKJ: Tensor) -> Tensor:
    """Products of pairs. A single pair goes twice, as a batch of one would be computed by other instructions."""
    if len(left_PIK) == 1:
        return torch.bmm(left_PIK.expand(2, -1, -1), right_PKJ.expand(2, -1, -1))[:1]
    return torch.bmm(left_PIK, right_PKJ)


def _dense(
    q_GRD: Tensor, keys_NGBD: Tensor, values_NGBD: Tensor, hidden_NMB: Tensor | None, rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Output `[H, M, D]`, log-sum-exp `[H, M]` and that of each block, by products over all blocks at once.

    A block is -inf too where it has less than e^-87 of the row's largest weight.
    """
    count, shared, block, width = keys_NGBD.shape
    tokens, group_rows = count * block, q_GRD.shape[1]
    keys_GKD, values_GKD = (held.transpose(0, 1).reshape(shared, tokens, width) for held in (keys_NGBD, values_NGBD))
    scores_GRK = torch.bmm(q_GRD, keys_GKD.transpose(1, 2))
    if hidden_NMB is not None:
        hidden_MK = hidden_NMB.transpose(0, 1).reshape(rows, tokens)
        scores_GRK.view(shared, group_rows // rows, rows, tokens).masked_fill_(hidden_MK, float("-inf"))
    top_GR = scores_GRK.amax(dim=2, keepdim=True).clamp_min_(_LEAST)
    weight_GRK = scores_GRK.sub_(top_GR).exp_()
    total_GRN = weight_GRK.view(shared, group_rows, count, block).sum(dim=3)
    total_GR = total_GRN.sum(dim=2, keepdim=True)
    lse_GR = torch.log(total_GR).add_(top_GR)
    block_lse_GRN = torch.log(total_GRN).add_(top_GR)
    out_GRD = torch.bmm(weight_GRK, values_GKD).div_(total_GR.clamp_min_(1.0))
    heads = shared * group_rows // rows
    return out_GRD.view(heads, rows, width), lse_GR.view(heads, rows), block_lse_GRN.view(heads, rows, count)


def _hidden(
    starts_N: Tensor, counts_N: Tensor, rows: int, block: int, query_start: int, window: int | None
) -> Tensor | None:
    """Which keys a row must not see, bool `[N, M, B]`; None where all rows see all keys."""
    device = starts_N.device
    # Row m sees the first `visible` tokens of a block, less those that its window has left behind.
    visible_NM = (query_start + 1 - starts_N)[:, None]
    if rows > 1:
        visible_NM = visible_NM + torch.arange(rows, device=device)
    index_B = torch.arange(block, device=device)
    hidden_NMB = index_B >= torch.minimum(visible_NM, counts_N[:, None])[..., None]
    if window is not None:
        hidden_NMB |= index_B < (visible_NM - window)[..., None]
    return hidden_NMB


def _clear(values_NGBD: Tensor, counts_N: Tensor) -> None:
    """Zero what lies behind the valid tokens: a weight of 0 doesn't hide a value that is NaN."""
    block = values_NGBD.shape[2]
    if counts_N.device.type == "cpu":
        counts = counts_N.numpy()
        short = np.flatnonzero(counts < block)
        # Most calls have one such block, the last of a sequence.
        if len(short) <= 2:
            for n in short.tolist():
                values_NGBD[n, :, counts[n] :].zero_()
            return
    short_n = torch.nonzero(counts_N < block).flatten()
    if not len(short_n):
        return
    unused_nB = torch.arange(block, device=counts_N.device) >= counts_N.index_select(0, short_n)[:, None]
    cleared = values_NGBD.index_select(0, short_n).masked_fill_(unused_nB[:, None, :, None], 0.0)
    values_NGBD.index_copy_(0, short_n, cleared)


def _check(
    q_HMD: Tensor,
    keys_SGBD: Tensor,
    values_SGBD: Tensor,
    slots_N: Tensor,
    starts_N: Tensor,
    counts_N: Tensor,
    window: int | None,
) -> None:
    fits = q_HMD.dim() == 3 and keys_SGBD.dim() == 4 and keys_SGBD.shape[:3] == values_SGBD.shape[:3]
    if not fits or keys_SGBD.shape[3] != q_HMD.shape[2] or q_HMD.shape[0] % max(1, keys_SGBD.shape[1]):
        raise ValueError(
            f"queries {list(q_HMD.shape)} do not fit keys {list(keys_SGBD.shape)} and values "
            f"{list(values_SGBD.shape)}; give [H, M, D] and [S, G, B, D] with H a multiple of G"
        )
    lengths = {len(slots_N), len(starts_N), len(counts_N)}
    if len(lengths) > 1:
        raise ValueError(f"there are {len(slots_N)} slots, {len(starts_N)} starts and {len(counts_N)} counts")
    if window is not None and window < 1:
        raise ValueError(f"the window is {window}; it has to be at least 1, or None")
