"""What a context memory is: a rule by which a state of fixed size is written and read.

A memory is a pure function of states: `attend` changes nothing, and `write` returns a new state and leaves the old one
as it is. So a checkpoint is the tensors of a state, a rollback goes back to an older state, and a fork shares one until
either side writes.

The model says what is written of a frame, and what of it is asked for (`MemoryModel`); the rule says how.

Shape suffixes: H heads, N tokens of a frame, K key size, V value size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from paceline.stages.world_file import MemoryShape

__all__ = ["ContextMemory", "State", "Writes"]

State = tuple[Tensor, ...]
"""The tensors of a session's state, all of fixed size."""


@dataclass(frozen=True, slots=True)
class Writes:
    """What is written of one frame: keys `[H, N, K]`, values `[H, N, V]`, strengths `[H, N]` in [0, 1]."""

    keys: Tensor
    values: Tensor
    strengths: Tensor


class ContextMemory(Protocol):
    """A rule. One object serves all sessions of a stage."""

    def empty(self, shape: MemoryShape, device: torch.device) -> State:
        """The state that holds nothing."""

    def attend(self, state: State, queries: Tensor) -> Tensor:
        """What the state holds for queries `[H, N, K]`, all of which read the same state: `[H, N, V]`."""

    def write(self, state: State, writes: Writes) -> State:
        """The state after one more frame."""

    def state_bytes(self, shape: MemoryShape) -> int:
        """Bytes of one session's state."""
