"""Linear attention as a context memory: what is written is added to what is held (Katharopoulos et al. 2020,
arXiv 2006.16236, without the normaliser), which fades with every frame."""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.kernels.delta_rule import delta_read
from paceline.stages.memory.protocol import State, Writes
from paceline.stages.world_file import MemoryShape

__all__ = ["LinearMemory"]


class LinearMemory:
    """S <- decay S + sum_n strength_n k_n v_n^T, over the tokens of a frame."""

    def __init__(self, decay: float = 0.95) -> None:
        """Raises `ValueError` for a decay outside (0, 1]."""
        if not isinstance(decay, (int, float)) or not 0.0 < decay <= 1.0:
            raise ValueError(f"decay is {decay!r}; write a number above 0 and up to 1")
        self._decay = decay

    def empty(self, shape: MemoryShape, device: torch.device) -> State:
        """See `ContextMemory`."""
        return (torch.zeros(shape.heads, shape.keys, shape.values, device=device),)

    def attend(self, state: State, queries: Tensor) -> Tensor:
        """See `ContextMemory`."""
        return delta_read(state[0], queries)

    def write(self, state: State, writes: Writes) -> State:
        """See `ContextMemory`."""
        return (self._decay * state[0] + writes.keys.mT @ (writes.strengths[..., None] * writes.values),)

    def state_bytes(self, shape: MemoryShape) -> int:
        """See `ContextMemory`."""
        return 4 * shape.heads * shape.keys * shape.values
