"""Inputs of the embedded world model: the glyph world, walked by its own seeded policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from paceline.stages.dit.config import FrameCondition
from paceline.stages.dit.patches import patchify
from paceline.stages.item import Meta

__all__ = ["GlyphFeed"]


class GlyphFeed:
    """Prompt frames are tokens with their condition; later items are conditions. See `Feed`."""

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
        meta: Meta = asdict(condition)
        if position < self._prompt:
            return (patchify(torch.from_numpy(self._world.frame())),), meta
        if self._on_truth is not None:
            self._on_truth(self._world.frame())
        return (), meta
