"""Prompt frames that several sessions start from: their KV is held once.

What decides is the KV itself, bit for bit. Frames are never written twice, so nothing has to be copied on write.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from paceline.tiers.manager import TierManager
from paceline.tiers.pool import Blocks

__all__ = ["SharedFrames"]


class SharedFrames:
    """Blocks of prompt frames in one manager, by layer, place and content. It holds none of them: a block is known as
    long as some session has it."""

    def __init__(self, manager: TierManager) -> None:
        self._manager = manager
        self._blocks: dict[bytes, int] = {}
        self._keys: dict[int, bytes] = {}
        self.shared = 0
        """Blocks that were found with another session."""
        manager.on_release = self._released

    def block(self, layer: int, frame: int, place: int, k_HBD: Tensor, v_HBD: Tensor, make: Callable[[], int]) -> int:
        """A block with this content, which the caller holds: another session's, or a new one that `make` writes."""
        key = _key(layer, frame, place, k_HBD, v_HBD)
        found = self._blocks.get(key)
        if found is not None and not self._manager.pool.lost[found]:
            self._manager.share([found])
            self.shared += 1
            return found
        block = make()
        # Of a lost one, who comes later takes this one.
        if found is not None:
            del self._keys[found]
        self._blocks[key], self._keys[block] = block, key
        return block

    def _released(self, blocks: Blocks) -> None:
        for block in blocks.tolist():
            key = self._keys.pop(block, None)
            if key is not None:
                del self._blocks[key]


def _key(layer: int, frame: int, place: int, k_HBD: Tensor, v_HBD: Tensor) -> bytes:
    digest = hashlib.sha256(f"{layer} {frame} {place}".encode())
    for tensor in (k_HBD, v_HBD):
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.digest()
