"""Linear attention as a context memory: what is written is added to what is held (Katharopoulos et al. 2020,
arXiv 2006.16236, without the normaliser), which fades with every frame."""

from __future__ import annotations

from paceline.kernels.delta_rule import linear_write
from paceline.stages.memory.matrix import FadingMemory
from paceline.stages.memory.protocol import State, Writes

__all__ = ["LinearMemory"]


class LinearMemory(FadingMemory):
    """S <- decay S + sum_n strength_n k_n v_n^T, over the tokens of a frame."""

    def __init__(self, decay: float = 0.95) -> None:
        super().__init__(decay)

    def write(self, state: State, writes: Writes) -> State:
        """See `ContextMemory`."""
        return (linear_write(self._decay * state[0], writes.keys, writes.values, writes.strengths),)
