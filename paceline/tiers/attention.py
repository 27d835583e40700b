"""Attention over blocks that lie in several tiers, as if they lay in one.

Exact: the blocks of a layer are attended in the order of their positions. Those that lie where attention reads them
need nothing; the others are staged. Calls are cut at multiples of `chunk` blocks from the start of the sequence, or not
at all, and never by where blocks lie; so where they lie does not change the bits.

Certified and profiled leave out blocks outside hbm of which little is proven, or known, to be missed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline.kernels.key_codes import coded_log_sum_bounds
from paceline.kernels.merge import merge
from paceline.kernels.paged_attention import KEPT_ROWS, Partial, paged_attention
from paceline.tiers.pool import Blocks
from paceline.tiers.profile import Profile
from paceline.tiers.selection import KeySummaries, Selection, profiled, prove
from paceline.tiers.settings import Mode, Tier, TierSettings
from paceline.tiers.staging import Staging
from paceline.tiers.storage import Storage

__all__ = ["Attended", "Query", "TieredAttention"]

_ROUND = 16
"""Blocks that one round of a proof reads at most."""


@dataclass(frozen=True, slots=True)
class Query:
    """One call of attention: rows of one sequence in one layer, and the blocks that they see, by position."""

    session: int
    layer: int
    q_HMD: Tensor
    blocks: Blocks
    starts: Blocks
    """Position of the first token of each block."""
    counts: Blocks
    """Valid tokens of each block."""
    start: int
    """Position of the first row."""
    scale: float
    window: int | None = None
    new: range | None = None
    """Rows that count; None: all. The others are padding."""

    @property
    def rows(self) -> slice:
        """The rows that count."""
        return slice(None) if self.new is None else slice(self.new.start, self.new.stop)

    def some(self, chosen: NDArray[np.int64]) -> Query:
        """The same over the blocks of these indices alone, in the order of positions."""
        return replace(self, blocks=self.blocks[chosen], starts=self.starts[chosen], counts=self.counts[chosen])

    def whole(self, block_size: int) -> NDArray[np.bool_]:
        """By block: whether every row sees all of its tokens."""
        seen: NDArray[np.bool_] = (self.counts == block_size) & (self.starts + block_size - 1 <= self.start)
        if self.window is not None:
            seen &= self.starts > self.start + self.q_HMD.shape[1] - 1 - self.window
        return seen


@dataclass(frozen=True, slots=True)
class Attended:
    """What a call gave."""

    out_HMD: Tensor
    read: Blocks
    """Blocks that were read."""
    masses: NDArray[np.float64] | None = None
    """Attention mass of every block of the query, on the mean of heads and rows, where it was measured."""
    bound: float | None = None
    """What was left out has at most this mass in every head and row; `profiled`: is expected to have it on the mean."""
    omitted: tuple[float, float] | None = None
    """Largest and mean attention mass, over heads and rows, of what would have been left out; where it was measured."""


class TieredAttention:
    """Attends over any tiers."""

    def __init__(self, storage: Storage, staging: Staging, profile: Profile, settings: TierSettings) -> None:
        self._storage, self._staging, self._profile = storage, staging, profile
        self._mode, self._epsilon = settings.mode, settings.epsilon
        self._block_size = storage.layout.block_size
        self._summaries = KeySummaries(storage, staging)
        if self._mode is Mode.certified:
            storage.leaving = self._summaries.update

    def attend(self, query: Query, measure: bool) -> Attended:
        """Attend; with `measure`, over all blocks, to see what mass each has. Raises `BlockLost`."""
        cold = np.flatnonzero(self._storage.pool.tier[query.blocks] != Tier.hbm)
        if self._mode is Mode.exact or not len(cold):
            partial = self._exact(query)
            masses = _masses(partial, query) if measure else None
            return Attended(partial.out_HMD, query.blocks, masses)
        if measure:
            return self._audited(query, cold)
        if self._mode is Mode.profiled:
            # What is read doesn't depend on what is found, so one call does.
            selection = self._expected(query.blocks[cold])
            read_N = np.ones(len(query.blocks), dtype=np.bool_)
            read_N[cold] = selection.read_N
            some = query.some(np.flatnonzero(read_N))
            return Attended(self._exact(some).out_HMD, some.blocks, bound=selection.bound)
        hot = np.setdiff1d(np.arange(len(query.blocks)), cold, assume_unique=True)
        partials = [self._exact(query.some(hot))]

        def read(indices: NDArray[np.int64]) -> Tensor:
            partials.append(self._exact(query.some(indices)))
            return partials[-1].lse_HM[:, query.rows]

        chosen, bound = self._choose(query, cold, partials[0].lse_HM[:, query.rows], read)
        indices = np.sort(np.concatenate([hot, cold[chosen]]))
        return Attended(merge(partials).out_HMD, query.blocks[indices], bound=bound)

    def _audited(self, query: Query, cold: NDArray[np.int64]) -> Attended:
        """Attend exactly, and see what would have been left out."""
        partial = self._exact(query)
        lse_HMN = partial.block_lse_HMN[:, query.rows]
        hot = np.setdiff1d(np.arange(len(query.blocks)), cold, assume_unique=True)

        def read(indices: NDArray[np.int64]) -> Tensor:
            return torch.logsumexp(lse_HMN[:, :, torch.from_numpy(indices).to(lse_HMN.device)], dim=2)

        chosen, bound = self._choose(query, cold, read(hot), read)
        left = torch.from_numpy(cold[~chosen]).to(lse_HMN.device)
        missed_HM = partial.mass_HMN[:, query.rows][:, :, left].sum(dim=2)
        omitted = float(missed_HM.amax()), float(missed_HM.mean())
        return Attended(partial.out_HMD, query.blocks, _masses(partial, query), bound, omitted)

    def _choose(
        self,
        query: Query,
        cold: NDArray[np.int64],
        seen_HM: Tensor,
        read: Callable[[NDArray[np.int64]], Tensor],
    ) -> tuple[NDArray[np.bool_], float]:
        """Which of the cold blocks are read, and the mass of the others. `read` reads blocks by index; it gives their
        log-sum-exp for the rows that count, as `seen_HM` is for all that need no reading."""
        blocks = query.blocks[cold]
        if self._mode is Mode.profiled:
            selection = self._expected(blocks)
            return selection.read_N, selection.bound
        bounds = coded_log_sum_bounds(query.q_HMD[:, query.rows], self._summaries.of(blocks), query.scale)
        # A summary of more keys than are valid bounds their sum from above, but not from below.
        whole = query.whole(self._block_size)[cold]
        whole_N = torch.from_numpy(whole).to(seen_HM.device)
        done = np.zeros(len(cold), dtype=np.bool_)
        while True:
            selection = prove(bounds, seen_HM, self._epsilon, done, whole_N, _ROUND)
            if len(selection.read):
                seen_HM = torch.logaddexp(seen_HM, read(cold[selection.read]))
                done |= selection.read_N
            if selection.enough:
                return done, selection.bound

    def _expected(self, blocks: Blocks) -> Selection:
        """Which of some cold blocks the profile says are to be read."""
        known = self._profile.of(blocks)
        return profiled(np.where(known.seen > 0, known.mass, np.inf), self._epsilon)

    def _exact(self, query: Query) -> Partial:
        """Attention over all blocks of a query, with what each block's part in it was. Raises `BlockLost`."""
        staging, blocks = self._staging, query.blocks
        pieces = self._pieces(query)
        coming = staging.begin(blocks[pieces[0]])
        partials = []
        for index, piece in enumerate(pieces):
            staged = coming
            if index + 1 < len(pieces):
                coming = staging.begin(blocks[pieces[index + 1]])
            partials.append(self._attend(query, piece, staging.rows(staged)))
            staging.used(staged)
        return merge(partials)

    def _pieces(self, query: Query) -> list[slice]:
        """Where to cut the blocks of a query."""
        count, chunk = len(query.blocks), self._staging.chunk
        merges_exactly = self._storage.memory.on_cpu and query.q_HMD.shape[1] <= KEPT_ROWS
        if count <= 1 or (merges_exactly and int(self._storage.pool.row[query.blocks].min()) >= 0):
            return [slice(0, count)]
        cuts = (np.flatnonzero(np.diff(query.starts // (self._block_size * chunk))) + 1).tolist()
        return [slice(low, high) for low, high in pairwise([0, *cuts, count])]

    def _attend(self, query: Query, piece: slice, rows: Blocks) -> Partial:
        home = self._storage.memory.home
        device = home.device
        return paged_attention(
            query.q_HMD,
            home.keys_SGBD,
            home.values_SGBD,
            torch.from_numpy(rows).to(device),
            torch.from_numpy(query.starts[piece]).to(device),
            torch.from_numpy(query.counts[piece]).to(device),
            query.start,
            query.scale,
            query.window,
        )


def _masses(partial: Partial, query: Query) -> NDArray[np.float64]:
    masses: NDArray[np.float64] = partial.mass_HMN[:, query.rows].mean(dim=(0, 1)).double().cpu().numpy()
    return masses
