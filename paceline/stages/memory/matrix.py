"""What memories share whose state is one matrix a head, which maps keys to values."""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.kernels.delta_rule import delta_read
from paceline.stages.memory.protocol import State
from paceline.stages.world_file import MemoryShape

__all__ = ["FadingMemory", "MatrixMemory"]


class MatrixMemory:
    """All of a `ContextMemory` but `write`."""

    def empty(self, shape: MemoryShape, device: torch.device) -> State:
        """See `ContextMemory`."""
        return (torch.zeros(shape.heads, shape.keys, shape.values, device=device),)

    def attend(self, state: State, queries: Tensor) -> Tensor:
        """See `ContextMemory`."""
        return delta_read(state[0], queries)

    def state_bytes(self, shape: MemoryShape) -> int:
        """See `ContextMemory`."""
        return 4 * shape.heads * shape.keys * shape.values


class FadingMemory(MatrixMemory):
    """One whose matrix fades by `decay` with every frame."""

    def __init__(self, decay: float) -> None:
        """Raises `ValueError` for a decay outside (0, 1]."""
        if not isinstance(decay, (int, float)) or not 0.0 < decay <= 1.0:
            raise ValueError(f"decay is {decay!r}; write a number above 0 and up to 1")
        self._decay = decay
