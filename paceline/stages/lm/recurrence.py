"""What a layer with a state of constant size is to a pass: an update of the state by rows, and what rows read of it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

__all__ = ["Recurrence", "State", "nbytes_of"]

State = tuple[Tensor, ...]
"""The tensors of a layer's state for one sequence, all of fixed size. They are never written in place."""


class Recurrence(Protocol):
    """A layer's rule. It is a pure function of states: who keeps an old state can go back to it."""

    def empty(self) -> State:
        """The state of a sequence without tokens."""
        ...

    def advance(self, state: State, rows: tuple[Tensor, ...]) -> tuple[State, Tensor]:
        """The state after rows `[N, ...]`, N >= 1, of the next positions, and what they read, `[N, ...]`."""
        ...


def nbytes_of(tensors: tuple[Tensor, ...]) -> int:
    """Bytes of tensors."""
    return sum(tensor.nbytes for tensor in tensors)
