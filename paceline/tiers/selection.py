"""Which cold blocks attention has to read so that no head of no row misses more than a share of its attention mass.

Certified: bounds on the keys prove it. With U_b an upper bound of what a block left out adds to the sum of e to the
scores, and Z a lower bound of what the others add, the mass left out is at most sum U_b / (Z + sum U_b). Proofs go in
rounds: what a round has read raises Z from a bound to a fact, and then less may be left to prove.

Profiled: the profile says so, and nothing proves it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline.kernels.bounds import LogSumBounds, log_sum_bounds
from paceline.kernels.key_codes import KeyCodes, encode
from paceline.kernels.summaries import Summaries
from paceline.tiers.pool import Blocks
from paceline.tiers.staging import Staging
from paceline.tiers.storage import Storage

__all__ = ["KeySummaries", "Selection", "certified", "profiled", "prove"]


@dataclass(frozen=True, slots=True)
class Selection:
    """What to read of N cold blocks."""

    read_N: NDArray[np.bool_]
    """Blocks that have to be read."""
    bound: float
    """The attention mass that the others have at most, whichever the head and row. `profiled`: what they are expected
    to have on the mean of heads and rows."""
    enough: bool = True
    """Whether reading them is enough; otherwise read them and prove again."""

    @property
    def read(self) -> NDArray[np.int64]:
        """Indices of the blocks to read, in order."""
        return np.flatnonzero(self.read_N)

    @property
    def omitted(self) -> int:
        """How many blocks are left out."""
        return int(len(self.read_N) - np.count_nonzero(self.read_N))


def certified(
    q_HMD: Tensor,
    summaries: Summaries,
    lse_hot_HM: Tensor,
    eps: float,
    scale: float,
    whole_N: Tensor | None = None,
) -> Selection:
    """What to read, in a single round, so that the omitted mass provably stays <= `eps` for every head and row.

    `summaries`: of the cold blocks. `lse_hot_HM`: log-sum-exp over all other blocks, -inf where there is none; it is
    taken as it is. `whole_N`: bool, blocks of which every row sees every key; None: all. Blocks that some rows see in
    part only count with all their keys where that makes the proof harder, and with none where it would make it easier.

    Where nothing can be proven all blocks are to be read. Raises `ValueError` where eps is not in [0, 1).
    """
    bounds = log_sum_bounds(q_HMD, summaries, scale)
    return prove(bounds, lse_hot_HM, eps, whole_N=whole_N)


@torch.no_grad()
def prove(
    bounds: LogSumBounds,
    lse_seen_HM: Tensor,
    eps: float,
    done_N: NDArray[np.bool_] | None = None,
    whole_N: Tensor | None = None,
    most: int | None = None,
) -> Selection:
    """One round of `certified` over bounds computed before.

    `done_N`: cold blocks that were read in earlier rounds; `lse_seen_HM` includes them. `most`: read at most so many
    in this round; if that is not `enough`, come again with what they added. Rounds that read little save the most:
    once a block that has nearly all the mass was read, the others can be left out.
    """
    if not 0 <= eps < 1:
        raise ValueError(f"eps is {eps}; it is a share of the attention mass, at least 0 and below 1")
    count = bounds.upper_HMN.shape[2]
    read_N = np.zeros(count, dtype=bool)
    left_n = np.arange(count) if done_N is None else np.flatnonzero(~done_N)
    if not len(left_n):
        return Selection(read_N, 0.0)
    index_n = torch.from_numpy(left_n).to(bounds.upper_HMN.device)
    # In double precision, so that large logarithms keep their digits.
    upper_Xn = bounds.upper_HMN.index_select(2, index_n).flatten(0, 1).double()
    lower_Xn = bounds.lower_HMN.index_select(2, index_n).flatten(0, 1).double()
    if whole_N is not None:
        lower_Xn.masked_fill_(~whole_N.index_select(0, index_n), -torch.inf)
    seen_X = lse_seen_HM.flatten().double()
    # The same factor makes all sums of a row finite: the largest that the row is known to reach.
    top_X = torch.maximum(seen_X, lower_Xn.amax(dim=1))
    top_X = torch.where(torch.isfinite(top_X), top_X, torch.zeros_like(top_X))
    order_n = torch.argsort((upper_Xn - top_X[:, None]).amax(dim=0), descending=True)
    upper_Xn = torch.exp(upper_Xn.index_select(1, order_n) - top_X[:, None])
    lower_Xn = torch.exp(lower_Xn.index_select(1, order_n) - top_X[:, None])
    seen_X1 = torch.exp(seen_X - top_X)[:, None]
    # Column k: the k blocks with the largest bounds are read.
    omitted_Xk = torch.nn.functional.pad(upper_Xn.flip(1).cumsum(1).flip(1), (0, 1))
    known_Xk = seen_X1 + torch.nn.functional.pad(lower_Xn.cumsum(1), (1, 0))
    share_Xk = omitted_Xk / (known_Xk + omitted_Xk)
    # Infinity over infinity proves nothing; 0 over 0 is a row without a key, which misses nothing.
    share_Xk = share_Xk.nan_to_num_(nan=1.0).masked_fill_(omitted_Xk == 0, 0.0)
    share_k = share_Xk.amax(dim=0).cpu().numpy() * (1 + 1e-9)
    # The share does not fall everywhere, but it is 0 where all are read.
    needed = int(np.argmax(share_k <= eps))
    taken = needed if most is None else min(needed, max(1, most))
    read_N[left_n[order_n[:taken].cpu().numpy()]] = True
    return Selection(read_N, float(share_k[taken]), taken == needed)


def profiled(mass_N: NDArray[np.float64], floor: float) -> Selection:
    """What to read where the profile is believed: all but the blocks of least mass that have at most `floor` in sum.

    `mass_N`: attention mass of the cold blocks by the profile; inf of those that it doesn't know, which are read.
    """
    order_N = np.argsort(mass_N, kind="stable")
    sums_N = np.cumsum(mass_N[order_N])
    omitted = int(np.searchsorted(sums_N, floor, side="right"))
    read_N = np.ones(len(mass_N), dtype=bool)
    read_N[order_N[:omitted]] = False
    return Selection(read_N, float(sums_N[omitted - 1]) if omitted else 0.0)


_BITS = 4
"""Bits of a channel of a key."""


class KeySummaries:
    """By block. A block is summarised when it leaves hbm, and again when it was written since."""

    def __init__(self, storage: Storage, staging: Staging) -> None:
        self._storage, self._staging = storage, staging
        layout = storage.layout
        self._device = storage.memory.device
        # Two channels fill a byte.
        self._bits = _BITS if layout.head_dim % 2 == 0 else 8
        self._held = self._empty(0)
        self._versions: Blocks = np.zeros(0, dtype=np.int64)
        self._generations: Blocks = np.zeros(0, dtype=np.int64)

    def update(self, blocks: Blocks) -> None:
        """See that blocks have summaries of what they hold now. Raises `BlockLost` where one can't be read for it."""
        pool = self._storage.pool
        self._grow(len(pool.live))
        old = (self._versions[blocks] != pool.version[blocks]) | (self._generations[blocks] != pool.generation[blocks])
        stale = blocks[old]
        keys_SGBD = self._storage.memory.home.keys_SGBD
        for low in range(0, len(stale), self._staging.chunk):
            some = stale[low : low + self._staging.chunk]
            staged = self._staging.begin(some)
            rows = torch.from_numpy(self._staging.rows(staged)).to(self._device)
            filled = torch.from_numpy(pool.filled[some]).to(self._device)
            made = encode(keys_SGBD.index_select(0, rows), filled, self._bits)
            self._staging.used(staged)
            self._held.put(torch.from_numpy(some).to(self._device), made)
            self._versions[some], self._generations[some] = pool.version[some], pool.generation[some]

    def of(self, blocks: Blocks) -> KeyCodes:
        """The summaries of blocks. Raises `BlockLost`."""
        self.update(blocks)
        return self._held.take(torch.from_numpy(blocks).to(self._device))

    @property
    def nbytes(self) -> int:
        """Bytes of all summaries."""
        return self._held.nbytes

    def _grow(self, blocks: int) -> None:
        had = len(self._versions)
        if blocks > had:
            with torch.inference_mode(False):
                self._held = KeyCodes.cat([self._held, self._empty(blocks - had)])
            none = np.full(blocks - had, -1, dtype=np.int64)
            self._versions = np.concatenate([self._versions, none])
            self._generations = np.concatenate([self._generations, none])

    def _empty(self, blocks: int) -> KeyCodes:
        layout = self._storage.layout
        return KeyCodes.empty(blocks, layout.heads, layout.block_size, layout.head_dim, self._bits, self._device)
