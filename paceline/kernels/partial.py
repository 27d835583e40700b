"""What attention over some of a sequence's blocks gives: enough to merge it with attention over the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Partial"]


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
