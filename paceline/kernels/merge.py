"""What attention over some of a sequence's blocks gives: enough to merge it with attention over the others.

The identity behind flash-decoding (Dao, Haziza, Massa and Sizov 2023) and ring attention. It is exact but for rounding;
where every part kept its blocks, not even rounding tells partitions apart: the blocks of all parts are put in the order
of their positions and summed up once, by the same function that sums up a single call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.kernels.triton_kernels import triton_kernels

__all__ = ["Partial", "merge", "reduce_blocks"]


@dataclass(frozen=True, slots=True)
class Partial:
    """Attention of M query rows over N blocks, normalised over these blocks alone.

    Of a row that saw no key, `out_HMD` is 0 and `lse_HM` is -inf.
    """

    out_HMD: Tensor
    """Weighted mean of the values that were seen."""
    lse_HM: Tensor
    """Log of the sum of e to the scores that were seen (natural logarithm)."""
    block_lse_HMN: Tensor
    """The same for each block, in the order in which the blocks were named; -inf where a row saw none of its keys."""
    starts_N: Tensor
    """Position of each block's first token, int64; what merging sorts by."""
    block_out_NHMD: Tensor | None = None
    """Each block's own weighted mean, where it was kept: then merging gives the same bits for every partition."""

    @property
    def mass_HMN(self) -> Tensor:
        """Attention mass: the share of each row's softmax weight that fell on each block. Sums to 1 over the blocks, or
        to 0 where a row saw no key."""
        # No key: -inf less -inf.
        return torch.sub(self.block_lse_HMN, self.lse_HM[..., None]).exp_().nan_to_num_(nan=0.0)

    @property
    def mass_N(self) -> Tensor:
        """Attention mass of each block, its mean over heads and rows."""
        return self.mass_HMN.mean(dim=(0, 1))

    def to(self, device: str | torch.device) -> Partial:
        """The same on another device."""
        kept = self.block_out_NHMD
        return Partial(
            self.out_HMD.to(device),
            self.lse_HM.to(device),
            self.block_lse_HMN.to(device),
            self.starts_N.to(device),
            None if kept is None else kept.to(device),
        )


def merge(partials: Sequence[Partial]) -> Partial:
    """One partial of all blocks, with `block_lse_HMN` concatenated in the order given.

    If all have kept their blocks, the result is bit for bit that of one call over all of them, in any order and any
    partition (no two blocks may start at one position). Else it is that up to rounding, and the parts are summed in
    the order given: name them in the order of their positions, cut at the same places, and the bits are the same too.

    Raises `ValueError` where there is nothing to merge.
    """
    if not partials:
        raise ValueError("there is nothing to merge; give at least one partial")
    if len(partials) == 1:
        return partials[0]
    block_lse_HMN = torch.cat([partial.block_lse_HMN for partial in partials], dim=2)
    starts_N = torch.cat([partial.starts_N for partial in partials])
    kept = [partial.block_out_NHMD for partial in partials if partial.block_out_NHMD is not None]
    if len(kept) == len(partials):
        block_out_NHMD = torch.cat(kept)
        out_HMD, lse_HM = reduce_blocks(block_out_NHMD, block_lse_HMN, starts_N)
        return Partial(out_HMD, lse_HM, block_lse_HMN, starts_N, block_out_NHMD)
    lse_HMP = torch.stack([partial.lse_HM for partial in partials], dim=2)
    out_PHMD = torch.stack([partial.out_HMD for partial in partials])
    out_HMD, lse_HM = _weighted(out_PHMD, lse_HMP)
    return Partial(out_HMD, lse_HM, block_lse_HMN, starts_N)


def reduce_blocks(block_out_NHMD: Tensor, block_lse_HMN: Tensor, starts_N: Tensor) -> tuple[Tensor, Tensor]:
    """`out_HMD` and `lse_HM` of blocks, summed in the order of their positions, whatever the order they are given in.

    Every block counts in this sum, also one that no row sees: leaving such a one out may change the last bit.
    """
    if len(starts_N) > 1 and bool((starts_N[1:] < starts_N[:-1]).any()):
        order_N = torch.argsort(starts_N)
        return _weighted(block_out_NHMD.index_select(0, order_N), block_lse_HMN.index_select(2, order_N))
    return _weighted(block_out_NHMD, block_lse_HMN)


def _weighted(out_PHMD: Tensor, lse_HMP: Tensor) -> tuple[Tensor, Tensor]:
    """Sum parts weighted by e^(L_p - L)."""
    parts, heads, rows, width = out_PHMD.shape
    if parts == 0:
        return out_PHMD.new_zeros(heads, rows, width), lse_HMP.new_full((heads, rows), float("-inf"))
    if parts == 1:
        return out_PHMD[0], lse_HMP[..., 0]
    # One layout, so that sums run in the same order however the parts came together.
    lse_PX = lse_HMP.permute(2, 0, 1).reshape(parts, -1).contiguous()
    out_PXD = out_PHMD.contiguous().view(parts, -1, width)
    triton = triton_kernels("merge") if out_PXD.device.type == "cuda" and out_PXD.dtype == torch.float32 else None
    if triton is not None:
        merged_XD, merged_X = triton.weighted(out_PXD, lse_PX)
        return merged_XD.view(heads, rows, width), merged_X.view(heads, rows)
    top_X = lse_PX.amax(dim=0).clamp_min_(torch.finfo(lse_PX.dtype).min)
    weight_PX = lse_PX.sub(top_X).exp_()
    total_X = weight_PX.sum(dim=0)
    lse_X = torch.log(total_X).add_(top_X)
    # The largest weight is 1, so a total is at least 1, or 0 where nothing was seen.
    weight_PX.div_(total_X.clamp_min_(1.0))
    out_XD = torch.bmm(weight_PX.t()[:, None], out_PXD.transpose(0, 1))
    return out_XD.view(heads, rows, width), lse_X.view(heads, rows)
