"""Blocks that several sessions may share because what they were computed from is the same.

Content is what went in, token ids or frames, not the KV that came out: so it is known before anything is computed. A
block's key hashes its own content and all before it (a chain, as in vLLM's prefix cache). KV of one content has the
same bits in all sessions where forwards are deterministic; where they are packed, it is the same within rounding.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from paceline.tiers.manager import TierManager
from paceline.tiers.paged_kv import PagedKV
from paceline.tiers.pool import Blocks

__all__ = ["PrefixIndex", "chain"]


def chain(parts: Sequence[bytes], seed: bytes = b"") -> list[bytes]:
    """A key for each part: SHA-256 over it and the key of the one before."""
    keys = []
    for part in parts:
        seed = hashlib.sha256(seed + part).digest()
        keys.append(seed)
    return keys


class PrefixIndex:
    """Blocks by content. It is a holder of its own: they stay when their session ends, until there are more than `most`
    entries, or until no tier has room for another block; then those go first that were asked for longest ago."""

    def __init__(self, manager: TierManager, most: int = 4096) -> None:
        self._manager, self._most = manager, most
        self._entries: OrderedDict[bytes, Blocks] = OrderedDict()
        self.hits = 0
        """Entries found."""
        self.lookups = 0
        """Entries asked for."""
        manager.spare = self._give_up

    def remember(self, key: bytes, blocks: Blocks) -> None:
        """Keep the blocks of a content, which nobody writes any more. The first ones under a key are kept."""
        if key in self._entries:
            self._entries.move_to_end(key)
            return
        self._manager.share(blocks)
        self._entries[key] = blocks.copy()
        while len(self._entries) > self._most:
            self._give_up()

    def find(self, keys: Sequence[bytes]) -> list[Blocks]:
        """The blocks of the first keys, up to one that is not known. Who wants to keep them shares them."""
        found = []
        self.lookups += len(keys)
        for key in keys:
            blocks = self._entries.get(key)
            if blocks is None:
                break
            if self._manager.pool.lost[blocks].any():
                # Nobody can read it any more; the next who computes it may bring another.
                self._manager.release(self._entries.pop(key))
                break
            self._entries.move_to_end(key)
            found.append(blocks)
        self.hits += len(found)
        return found

    def remember_tokens(self, kv: PagedKV, tokens: Sequence[int]) -> None:
        """Keep the full blocks of a sequence whose first positions hold these tokens."""
        size = self._manager.layout.block_size
        keys = _token_keys(tokens[: kv.length], size)
        for number, key in enumerate(keys):
            self.remember(key, kv.blocks(number))

    def adopt_tokens(self, tokens: Sequence[int]) -> PagedKV:
        """A new sequence that has the longest known beginning of these tokens, as `length` says; never all of them, as
        somebody wants to know what follows the last."""
        size = self._manager.layout.block_size
        found = self.find(_token_keys(tokens[:-1], size))
        table = np.stack(found, axis=1) if found else np.zeros((self._manager.layout.layers, 0), dtype=np.int64)
        return PagedKV.of(self._manager, table, len(found) * size)

    def clear(self) -> None:
        """Let go of all blocks."""
        while self._give_up():
            pass

    def _give_up(self) -> bool:
        """Let go of the entry that was asked for longest ago; whether there was one."""
        if not self._entries:
            return False
        _, blocks = self._entries.popitem(last=False)
        self._manager.release(blocks)
        return True

    def __len__(self) -> int:
        return len(self._entries)


def _token_keys(tokens: Sequence[int], block_size: int) -> list[bytes]:
    full = len(tokens) // block_size * block_size
    ids = np.asarray(tokens[:full], dtype="<i8").reshape(-1, block_size)
    return chain([row.tobytes() for row in ids])
