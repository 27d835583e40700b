"""Where a session's inputs come from: prompt frames, then one action a frame."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from paceline.stages.dit import FrameCondition
from paceline.stages.item import Meta
from paceline.stages.patches import patchify

__all__ = ["Feed", "PayloadFeed", "WorldFeed"]


class Feed(Protocol):
    """One session's inputs, asked for in order of position."""

    def next(self, position: int) -> tuple[tuple[Tensor, ...], Meta]:
        """Tensors and metadata of the item at `position`; each position is asked for once, in order."""


class WorldFeed:
    """The embedded world, walked by its own seeded policy. Prompt frames are tokens; later items are conditions."""

    def __init__(self, seed: int, prompt: int, on_truth: Callable[[np.ndarray], None] | None = None) -> None:
        """`on_truth` is handed the true frame behind every condition."""
        from zoo.world.environment import GlyphWorld

        self._world = GlyphWorld(seed)
        self._prompt = prompt
        self._on_truth = on_truth

    def next(self, position: int) -> tuple[tuple[Tensor, ...], Meta]:
        """See `Feed.next`."""
        if position:
            self._world.advance(self._world.policy_action())
        condition: FrameCondition = self._world.condition()
        meta: Meta = {
            "action": condition.action,
            "heading": condition.heading,
            "pose_y": condition.pose_y,
            "pose_x": condition.pose_x,
        }
        if position < self._prompt:
            return (patchify(torch.from_numpy(self._world.frame())),), meta
        if self._on_truth is not None:
            self._on_truth(self._world.frame())
        return (), meta


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
