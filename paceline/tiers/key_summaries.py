"""What is remembered of the keys of blocks outside hbm, kept where attention is computed: the keys at few bits."""

from __future__ import annotations

import numpy as np
import torch

from paceline.kernels.key_codes import KeyCodes, encode
from paceline.tiers.pool import Blocks
from paceline.tiers.staging import Staging
from paceline.tiers.storage import Storage

__all__ = ["KeySummaries"]

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
