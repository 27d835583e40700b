"""Test-time training as a context memory: the state is a small model that learns from every frame to map keys to values
(TTT-Linear and TTT-MLP, Sun et al. 2024, arXiv 2407.04620; see `kernels/ttt.py`).

The learning rate of a token is `rate` times the strength with which the model writes it, and for TTT-MLP divided by
the number of hidden units. Gradients are taken `batch` tokens at a time. The default rates are stable where keys have
length 1 and overlap little within a mini-batch, and values are of the size that a layer norm gives.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from paceline.kernels.philox import Purpose, normal
from paceline.kernels.ttt import ttt_linear_write, ttt_mlp_read, ttt_mlp_write
from paceline.stages.memory.matrix import MatrixMemory
from paceline.stages.memory.protocol import State, Writes
from paceline.stages.world_file import MemoryShape

__all__ = ["TTTLinearMemory", "TTTMLPMemory"]


def _check(rate: float, **counts: int) -> None:
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0.0 < rate < math.inf:
        raise ValueError(f"rate is {rate!r}; write a number above 0")
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} is {count!r}; write a whole number from 1 on")


class TTTLinearMemory(MatrixMemory):
    """TTT-Linear; the matrix is its weights. With a `batch` of 1 and a `rate` of 1 it is the delta rule."""

    def __init__(self, rate: float = 1.0, batch: int = 16) -> None:
        """Raises `ValueError` for a rate that is not above 0, or a batch below 1."""
        _check(rate, batch=batch)
        self._rate, self._batch = rate, batch

    def write(self, state: State, writes: Writes) -> State:
        """See `ContextMemory`."""
        rates = self._rate * writes.strengths
        return (ttt_linear_write(state[0], writes.keys, writes.values, rates, self._batch),)


class TTTMLPMemory:
    """TTT-MLP with `hidden` units a head. The second matrix begins at 0, so that an empty memory reads as 0; the first
    begins at random numbers that are the same in every session."""

    def __init__(self, rate: float = 0.5, batch: int = 16, hidden: int = 64) -> None:
        """Raises `ValueError` for a rate that is not above 0, or a batch or hidden size below 1."""
        _check(rate, batch=batch, hidden=hidden)
        self._rate, self._batch, self._hidden = rate, batch, hidden

    def empty(self, shape: MemoryShape, device: torch.device) -> State:
        """See `ContextMemory`; the state is `MLPWeights`."""
        # Keys have length 1, so that hidden units get standard normal input.
        first = normal(0, 1, Purpose.memory, (shape.heads, shape.keys, self._hidden), device)
        bias = torch.zeros(shape.heads, 1, self._hidden, device=device)
        return first, bias, torch.zeros(shape.heads, self._hidden, shape.values, device=device)

    def attend(self, state: State, queries: Tensor) -> Tensor:
        """See `ContextMemory`."""
        first, bias, second = state
        return ttt_mlp_read((first, bias, second), queries)

    def write(self, state: State, writes: Writes) -> State:
        """See `ContextMemory`."""
        first, bias, second = state
        # What a step changes at a token's own key grows with the number of hidden units.
        rates = (self._rate / self._hidden) * writes.strengths
        return ttt_mlp_write((first, bias, second), writes.keys, writes.values, rates, self._batch)

    def state_bytes(self, shape: MemoryShape) -> int:
        """See `ContextMemory`."""
        return 4 * shape.heads * self._hidden * (shape.keys + 1 + shape.values)
