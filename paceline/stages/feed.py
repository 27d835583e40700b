"""Where a session's inputs come from. A world model brings a feed of its own (`WorldFile.feed`)."""

from __future__ import annotations

import hashlib
from typing import Protocol

import torch
from torch import Tensor

from paceline.stages.item import Meta

__all__ = ["Feed", "PayloadFeed"]


class Feed(Protocol):
    """One session's inputs, asked for in order of position."""

    def next(self, position: int) -> tuple[tuple[Tensor, ...], Meta]:
        """Tensors and metadata of the item at `position`; each position is asked for once, in order."""


class PayloadFeed:
    """Bytes for a sleep workload: a keyed hash of (seed, position), repeated. This is about moving bytes, not making
    them."""

    def __init__(self, seed: int, nbytes: int) -> None:
        self._seed, self._nbytes = seed.to_bytes(8, "little"), nbytes

    def next(self, position: int) -> tuple[tuple[Tensor, ...], Meta]:
        """See `Feed.next`."""
        block = hashlib.blake2b(position.to_bytes(8, "little"), key=self._seed).digest()
        data = bytearray(block * -(-self._nbytes // len(block)))
        return (torch.frombuffer(data, dtype=torch.uint8)[: self._nbytes],), {}
