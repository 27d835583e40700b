"""The context memory of one session: which frames it holds, and what each frame reads of it.

The state for frame T holds the frames up to T - `Context.written`: those that have left the window and are finished in
every placement of the steps. It is read once for each frame, where the frame's first step is, and what was read travels
with the latent. So what a frame reads depends on nothing that is in flight. Prompt frames, which every stage computes
for itself, read an empty state.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from paceline.stages.memory.protocol import ContextMemory, State, Writes
from paceline.stages.world_file import WorldHeader
from paceline.stages.world_model import AnyWorldModel

__all__ = ["FrameMemory", "MemoryModel", "empty_read"]

ConditionT = TypeVar("ConditionT", contravariant=True)


class MemoryModel(Protocol[ConditionT]):
    """What a world model implements whose `WorldHeader.memory` is set.

    Shape suffixes: H heads, N tokens of a frame, K key size, V value size.
    """

    header: WorldHeader
    device: torch.device

    def memory_writes(self, latent: Tensor, condition: ConditionT) -> Writes:
        """What is written of a finished frame."""
        ...

    def memory_queries(self, condition: ConditionT) -> Tensor:
        """What a frame asks for: `[H, N, K]`."""
        ...

    def memory_read(self, held: Tensor, condition: ConditionT) -> Tensor:
        """What a frame reads, a tensor of `MemoryShape.read`, of what the state holds for its queries, `[H, N, V]`."""
        ...


class FrameMemory:
    """One session's memory, at the stage of the first step."""

    def __init__(self, rule: ContextMemory, model: AnyWorldModel, written: int) -> None:
        """`written`: how far behind the frame that reads the last one lies that is held. Raises `ValueError` where the
        model was trained without a memory."""
        self._rule, self._model, self._written = rule, cast("MemoryModel[Any]", model), written
        self._waiting: dict[int, tuple[Tensor, Any]] = {}
        self.state = _empty(rule, self._model)
        self.reads = self.writes = 0

    def finished(self, frame: int, latent: Tensor, condition: Any) -> None:
        """A frame is finished, or was given. It is held back until it has left the window."""
        self._waiting[frame] = latent, condition

    def read(self, frame: int, condition: Any) -> Tensor:
        """What a frame reads, in order of frames; what has left the window is written before.

        Raises `ValueError` where a frame that has to be written has not come.
        """
        old = frame - self._written
        if old >= 0:
            if old not in self._waiting:
                raise ValueError(f"frame {frame} reads the memory, and frame {old} is not finished")
            for held in sorted(each for each in self._waiting if each <= old):
                latent, of_held = self._waiting.pop(held)
                self.state = self._rule.write(self.state, self._model.memory_writes(latent, of_held))
                self.writes += 1
        self.reads += 1
        return _read(self._rule, self._model, self.state, condition)

    @property
    def waiting(self) -> int:
        """Finished frames that are held back."""
        return len(self._waiting)

    @property
    def state_bytes(self) -> int:
        """Bytes of the state; the same from the first frame to the last."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.state)


def empty_read(rule: ContextMemory, model: AnyWorldModel, condition: Any) -> Tensor:
    """What a prompt frame reads."""
    knows = cast("MemoryModel[Any]", model)
    return _read(rule, knows, _empty(rule, knows), condition)


def _empty(rule: ContextMemory, model: MemoryModel[Any]) -> State:
    if model.header.memory is None:
        raise ValueError("the model was trained without a context memory")
    return rule.empty(model.header.memory, model.device)


def _read(rule: ContextMemory, model: MemoryModel[Any], state: State, condition: Any) -> Tensor:
    return model.memory_read(rule.attend(state, model.memory_queries(condition)), condition)
