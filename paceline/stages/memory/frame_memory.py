"""The context memory of one session: which frames it holds, and what each frame reads of it.

The state for frame T holds the frames up to T - `Context.written`: those that have left the window and are finished in
every placement of the steps. It is read once for each frame, where the frame's first step is, and what was read travels
with the latent. So what a frame reads depends on nothing that is in flight. Prompt frames, which every stage computes
for itself, read an empty state.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from paceline.stages.memory.protocol import ContextMemory, MemoryShape, State, Writes

__all__ = ["FrameMemory", "MemoryModel"]

ConditionT = TypeVar("ConditionT", contravariant=True)


class MemoryModel(Protocol[ConditionT]):
    """What a world model that was trained with a memory knows of it."""

    memory_shape: MemoryShape

    def memory_writes(self, latent: Tensor, condition: ConditionT) -> Writes:
        """What is written of a finished frame."""

    def memory_queries(self, condition: ConditionT) -> Tensor:
        """What a frame asks for: `[H, N, K]`."""

    def memory_read(self, held: Tensor, condition: ConditionT) -> Tensor:
        """What travels with the frame, of what the state holds for its queries, `[H, N, V]`."""


class FrameMemory(Generic[ConditionT]):
    """One session's memory, at the stage of the first step."""

    def __init__(self, rule: ContextMemory, model: MemoryModel[ConditionT], written: int, device: torch.device) -> None:
        """`written`: how far behind the frame that reads the last one lies that is held."""
        self._rule, self._model, self._written = rule, model, written
        self._waiting: dict[int, tuple[Tensor, ConditionT]] = {}
        self.state: State = rule.empty(model.memory_shape, device)
        self.reads = self.writes = 0

    def finished(self, frame: int, latent: Tensor, condition: ConditionT) -> None:
        """A frame is finished, or was given. It is held back until it has left the window."""
        self._waiting[frame] = latent, condition

    def read(self, frame: int, condition: ConditionT) -> Tensor:
        """What a frame reads, in order of frames; what has left the window is written before.

        Raises `ValueError` where a frame that has to be written has not come.
        """
        old = frame - self._written
        if old >= 0:
            if old not in self._waiting:
                raise ValueError(f"frame {frame} reads the memory, and frame {old} is not finished")
            for held in sorted(each for each in self._waiting if each <= old):
                latent, place = self._waiting.pop(held)
                self.state = self._rule.write(self.state, self._model.memory_writes(latent, place))
                self.writes += 1
        self.reads += 1
        return read_state(self._rule, self._model, self.state, condition)

    @property
    def waiting(self) -> int:
        """Finished frames that are held back."""
        return len(self._waiting)


def read_state(rule: ContextMemory, model: MemoryModel[ConditionT], state: State, condition: ConditionT) -> Tensor:
    """What a frame reads of a state."""
    return model.memory_read(rule.attend(state, model.memory_queries(condition)), condition)
