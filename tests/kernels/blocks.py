"""Paged sequences to attend over, and plain attention to compare with."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from paceline.kernels.paged_attention import Partial, paged_attention


def randn(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def permutation(seed: int, count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True, slots=True)
class Case:
    """Queries, and a sequence whose blocks lie in shuffled slots; NaN wherever no token is."""

    q_HMD: Tensor
    keys_SGBD: Tensor
    values_SGBD: Tensor
    slots_N: Tensor
    starts_N: Tensor
    counts_N: Tensor
    query_start: int
    window: int | None

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.q_HMD.shape[2])

    def attend(self, keep_blocks: bool | None = None) -> Partial:
        return paged_attention(
            self.q_HMD,
            self.keys_SGBD,
            self.values_SGBD,
            self.slots_N,
            self.starts_N,
            self.counts_N,
            self.query_start,
            self.scale,
            self.window,
            keep_blocks,
        )

    def some(self, index: Tensor) -> Case:
        """The same queries over some of the blocks, in this order."""
        return replace(self, slots_N=self.slots_N[index], starts_N=self.starts_N[index], counts_N=self.counts_N[index])

    def moved(self, seed: int, slots: int) -> Case:
        """The same blocks in other slots of another arena."""
        fresh = permutation(seed, slots)[: len(self.slots_N)]
        keys = torch.full((slots, *self.keys_SGBD.shape[1:]), torch.nan, dtype=self.keys_SGBD.dtype)
        values = keys.clone()
        keys[fresh], values[fresh] = self.keys_SGBD[self.slots_N], self.values_SGBD[self.slots_N]
        return replace(self, keys_SGBD=keys, values_SGBD=values, slots_N=fresh)

    def visible_MK(self) -> Tensor:
        """Which of the keys of all blocks, one after another, a row sees."""
        block = self.keys_SGBD.shape[2]
        index = torch.arange(block)
        position = (self.starts_N[:, None] + index).flatten()
        valid = (index < self.counts_N[:, None]).flatten()
        row = torch.arange(self.query_start, self.query_start + self.q_HMD.shape[1])[:, None]
        seen = (position <= row) & valid
        return seen if self.window is None else seen & (position > row - self.window)

    def flat(self) -> tuple[Tensor, Tensor]:
        """Keys and values `[H, N * B, D]` in float64, each key head repeated for its query heads."""
        group = self.q_HMD.shape[0] // self.keys_SGBD.shape[1]
        parts = [
            held[self.slots_N].double().nan_to_num(0.0).transpose(0, 1).flatten(1, 2).repeat_interleave(group, dim=0)
            for held in (self.keys_SGBD, self.values_SGBD)
        ]
        return parts[0], parts[1]

    def plain(self) -> Tensor:
        """Torch's own attention in float64; NaN in rows that see nothing."""
        keys, values = self.flat()
        mask = self.visible_MK()
        return scaled_dot_product_attention(self.q_HMD.double(), keys, values, attn_mask=mask, scale=self.scale)

    def scores_HMK(self) -> Tensor:
        """Scores in float64, -inf where a row does not see a key."""
        keys, _ = self.flat()
        scores = self.q_HMD.double() @ keys.transpose(1, 2) * self.scale
        return scores.masked_fill(~self.visible_MK(), -torch.inf)


def case(
    seed: int,
    tokens: int,
    *,
    heads: int = 4,
    shared: int = 2,
    rows: int = 1,
    block: int = 4,
    width: int = 8,
    window: int | None = None,
    spread: float = 1.0,
    dtype: torch.dtype = torch.float32,
    slots: int | None = None,
) -> Case:
    """A sequence of `tokens` positions of which the last `rows` are queries."""
    count = -(-tokens // block)
    slots = count + 3 if slots is None else slots
    starts = torch.arange(count) * block
    counts = (tokens - starts).clamp(max=block)
    place = permutation(seed, slots)[:count]
    arenas = []
    for offset in (1, 2):
        held = torch.full((slots, shared, block, width), torch.nan, dtype=dtype)
        fresh = randn(seed + offset, count, shared, block, width, dtype=dtype) * spread
        unused = torch.arange(block) >= counts[:, None]
        held[place] = fresh.masked_fill(unused[:, None, :, None], torch.nan)
        arenas.append(held)
    query = randn(seed + 3, heads, rows, width, dtype=dtype) * spread
    return Case(query, arenas[0], arenas[1], place, starts, counts, tokens - rows, window)
