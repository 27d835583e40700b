"""The delta rule as a context memory: what is written for a key takes the place of what was held for it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from paceline.kernels.delta_rule import delta_read, delta_write
from paceline.stages.memory.protocol import State, Writes
from paceline.stages.world_file import MemoryShape

__all__ = ["DeltaMemory"]


class DeltaMemory:
    """See `kernels/delta_rule.py`. With a `decay` below 1 what is held fades by that factor with every frame."""

    def __init__(self, decay: float = 1.0) -> None:
        """Raises `ValueError` for a decay outside (0, 1]."""
        if not isinstance(decay, (int, float)) or not 0.0 < decay <= 1.0:
            raise ValueError(f"decay is {decay!r}; write a number above 0 and up to 1")
        self._log_decay = math.log(decay)

    def empty(self, shape: MemoryShape, device: torch.device) -> State:
        """See `ContextMemory`."""
        return (torch.zeros(shape.heads, shape.keys, shape.values, device=device),)

    def attend(self, state: State, queries: Tensor) -> Tensor:
        """See `ContextMemory`."""
        return delta_read(state[0], queries)

    def write(self, state: State, writes: Writes) -> State:
        """See `ContextMemory`."""
        decay = None
        if self._log_decay:
            # The first token of a frame fades what came before; the others of the frame fade nothing.
            decay = torch.zeros_like(writes.strengths)
            decay[..., 0] = self._log_decay
        return (delta_write(state[0], writes.keys, writes.values, writes.strengths, decay),)

    def state_bytes(self, shape: MemoryShape) -> int:
        """See `ContextMemory`."""
        return 4 * shape.heads * shape.keys * shape.values
