"""The delta rule as a context memory: what is written for a key takes the place of what was held for it."""

from __future__ import annotations

import math

import torch

from paceline.kernels.delta_rule import delta_write
from paceline.stages.memory.matrix import FadingMemory
from paceline.stages.memory.protocol import State, Writes

__all__ = ["DeltaMemory"]


class DeltaMemory(FadingMemory):
    """See `kernels/delta_rule.py`. With a `decay` below 1 what is held fades by that factor with every frame."""

    def __init__(self, decay: float = 1.0) -> None:
        super().__init__(decay)

    def write(self, state: State, writes: Writes) -> State:
        """See `ContextMemory`."""
        decay = None
        if self._decay != 1:
            # The first token of a frame fades what came before; the others of the frame fade nothing.
            decay = torch.zeros_like(writes.strengths)
            decay[..., 0] = math.log(self._decay)
        return (delta_write(state[0], writes.keys, writes.values, writes.strengths, decay),)
