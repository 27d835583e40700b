"""A closer memory of a block's keys than `Summaries`: the keys themselves at few bits, and how far off these are.

A score is within |q| e of the score against the key that comes back, where no key is further than e from what comes
back of it; so is the log of the sum of e to the scores (it never grows faster than its largest argument). At 4 bits
that takes 1.3 times the bytes of a summary, for blocks of 16 tokens, and proves far more where the keys of a block
differ; see bench/results/certified.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.kernels.bounds import ROUNDING, LogSumBounds, rounding_slack
from paceline.kernels.quantise import Axis, Packed, pack, unpack

__all__ = ["KeyCodes", "coded_log_sum_bounds", "encode"]

_UP = 1.0 + 2.0**-20
_LARGEST = 1e37


@dataclass(frozen=True, slots=True)
class KeyCodes:
    """Keys of N blocks and G heads at 8, 4 or 2 bits, with scales for each channel of a block. The first axis may also
    be that of slots, most of them unused; `put` and `take` go between the two, as in `Summaries`."""

    keys: Packed
    error_NG: Tensor
    """No key is further from what comes back of it."""
    reach_NG: Tensor
    """No key is longer, nor what comes back of it. Rounding errors are proportional to it."""
    count_N: Tensor
    """Valid keys, int64; the others are ignored."""

    def __len__(self) -> int:
        return len(self.count_N)

    @classmethod
    def empty(
        cls, slots: int, heads: int, block: int, width: int, bits: int, device: str | torch.device = "cpu"
    ) -> KeyCodes:
        """Room for so many blocks, all of which count 0 keys. Raises `ValueError` for other bits than 8, 4, 2, and for
        a D that does not fill bytes."""
        with torch.inference_mode(False):
            none = encode(torch.zeros(1, heads, block, width), torch.zeros(1, dtype=torch.int64), bits)
            return none.take(torch.zeros(slots, dtype=torch.int64)).to(device)

    @classmethod
    def cat(cls, parts: Sequence[KeyCodes]) -> KeyCodes:
        """Blocks of several one after another. Raises `ValueError` where there are none."""
        if not parts:
            raise ValueError("there are no key codes to concatenate")
        columns = [torch.cat(column) for column in zip(*(part._tensors() for part in parts), strict=True)]
        return parts[0]._like(columns)

    def take(self, slots_N: Tensor) -> KeyCodes:
        """What is in these slots, int64 `[N]`: a copy."""
        return self._like([column.index_select(0, slots_N) for column in self._tensors()])

    def put(self, slots_N: Tensor, others: KeyCodes) -> None:
        """Write N blocks into different slots, int64 `[N]`."""
        for mine, theirs in zip(self._tensors(), others._tensors(), strict=True):
            mine.index_copy_(0, slots_N, theirs)

    def to(self, device: str | torch.device) -> KeyCodes:
        """The same on another device."""
        return self._like([column.to(device) for column in self._tensors()])

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(int(column.nbytes) for column in self._tensors())

    def _tensors(self) -> list[Tensor]:
        keys = self.keys
        return [keys.codes_NGBC, keys.step_NGX, keys.lowest_NGX, self.error_NG, self.reach_NG, self.count_N]

    def _like(self, columns: Sequence[Tensor]) -> KeyCodes:
        codes, step, lowest, error, reach, count = columns
        return KeyCodes(Packed(codes, step, lowest, self.keys.bits, self.keys.axis), error, reach, count)


@torch.no_grad()
def encode(keys_NGBD: Tensor, counts_N: Tensor, bits: int) -> KeyCodes:
    """Encode the first `counts_N` (int64 `[N]`, 0 to B) keys of each block; what lies behind them may be anything.

    A block with a key that is not finite, or too large to say how far off it is, has infinite bounds. Raises
    `ValueError` for other bits than 8, 4, 2, and for a D that does not fill bytes.
    """
    unused_NB = torch.arange(keys_NGBD.shape[2], device=keys_NGBD.device) >= counts_N[:, None]
    keys_NGBD = keys_NGBD.to(torch.float32).masked_fill(unused_NB[:, None, :, None], 0.0)
    fine_NG = (keys_NGBD.abs() <= _LARGEST).all(dim=3).all(dim=2)
    keys_NGBD = torch.where(fine_NG[:, :, None, None], keys_NGBD, torch.zeros_like(keys_NGBD))
    packed = pack(keys_NGBD, bits, Axis.channel)
    back_NGBD = unpack(packed)
    # In double precision, as squares of float32 pass its range.
    wide_NGBD = keys_NGBD.double()
    error_NG = (wide_NGBD - back_NGBD.double()).norm(dim=3).masked_fill_(unused_NB[:, None], 0.0).amax(dim=2)
    reach_NG = torch.maximum(wide_NGBD.norm(dim=3).amax(dim=2), back_NGBD.double().norm(dim=3).amax(dim=2))
    error_NG.masked_fill_(~fine_NG, torch.inf)
    return KeyCodes(packed, (error_NG * _UP).float(), (reach_NG * _UP).float(), counts_N.clone())


@torch.no_grad()
def coded_log_sum_bounds(q_HMD: Tensor, codes: KeyCodes, scale: float) -> LogSumBounds:
    """As `log_sum_bounds`, from codes: bounds of the log of each block's sum of e to the scores, which hold for scores
    as a float32 kernel computes them, too."""
    heads, rows, width = q_HMD.shape
    keys_NGBD = unpack(codes.keys)
    count, shared, block = keys_NGBD.shape[:3]
    q_GXD = (q_HMD.to(torch.float32) * scale).reshape(shared, -1, width)
    norm_GX1 = q_GXD.double().norm(dim=2, keepdim=True).float() * _UP
    keys_GKD = keys_NGBD.transpose(0, 1).reshape(shared, count * block, width)
    scores_GXNB = torch.bmm(q_GXD, keys_GKD.transpose(1, 2)).view(shared, -1, count, block)
    unused_NB = torch.arange(block, device=q_HMD.device) >= codes.count_N[:, None]
    near_GXN = scores_GXNB.masked_fill_(unused_NB, -torch.inf).logsumexp(dim=3)
    off_GXN = norm_GX1 * codes.error_NG.t()[:, None] + rounding_slack(norm_GX1, codes.reach_NG, width) + ROUNDING
    lower_HMN = (near_GXN - off_GXN).view(heads, rows, count)
    upper_HMN = (near_GXN + off_GXN).view(heads, rows, count)
    absent_N = codes.count_N == 0
    return LogSumBounds(
        lower_HMN.nan_to_num_(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf),
        upper_HMN.nan_to_num_(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).masked_fill_(absent_N, -torch.inf),
    )
