"""The context memory of one session: which frames it holds, and what each frame reads of it.

The state for frame T holds the frames up to T - `Context.written`: those that have left the window and are finished in
every placement of the steps. It is read once for each frame, where the frame's first step is, and what was read travels
with the latent. So what a frame reads depends on nothing that is in flight. Prompt frames, which every stage computes
for itself, read an empty state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor

from paceline.stages.memory.history import FinishedFrame, MemoryHistory
from paceline.stages.memory.protocol import ContextMemory, State, Writes
from paceline.stages.world_file import WorldHeader
from paceline.stages.world_model import AnyWorldModel

__all__ = ["FamiliarityModel", "FrameMemory", "MemoryCheckpoint", "MemoryModel", "empty_read"]

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


@runtime_checkable
class FamiliarityModel(Protocol[ConditionT]):
    """What a `MemoryModel` implements that can say how much of a place its memory holds."""

    def memory_familiarity(self, held: Tensor, condition: ConditionT) -> Tensor:
        """How well the places of a frame are known, by what the state holds for its queries, `[H, N, V]`. The shape is
        the model's own; see there."""
        ...


@dataclass(frozen=True, slots=True)
class MemoryCheckpoint:
    """A session's memory at one moment. Tensors are shared with the memory that it was taken of, and never change."""

    state: State
    held: int
    """The state holds the frames below this one"""
    waiting: tuple[FinishedFrame, ...]
    """Finished frames that have not left the window yet, in order"""
    reads: int
    writes: int

    @property
    def nbytes(self) -> int:
        """Bytes of state and latents."""
        return sum(part.nbytes for part in (*self.state, *(each.latent for each in self.waiting)))


class FrameMemory:
    """One session's memory, at the stage of the first step."""

    state: State
    reads: int
    writes: int
    _held: int
    """The state holds the frames below this one"""
    _waiting: dict[int, FinishedFrame]
    _history: MemoryHistory

    def __init__(self, rule: ContextMemory, model: AnyWorldModel, written: int, rollback: int = 0) -> None:
        """`written`: how far behind the frame that reads the last one lies that is held. `rollback`: how many frames
        that were written can be taken back at least. Raises `ValueError` where the model was trained without a
        memory."""
        self._rule, self._model, self._written = rule, cast("MemoryModel[Any]", model), written
        self._rollback = rollback
        self.reset()

    def reset(self) -> None:
        """Forget everything, as if no frame had been."""
        state = _empty(self._rule, self._model)
        self._begin(MemoryCheckpoint(state, 0, (), 0, 0))

    def finished(self, frame: int, latent: Tensor, condition: Any) -> None:
        """A frame is finished, or was given. It is held back until it has left the window."""
        self._waiting[frame] = FinishedFrame(frame, latent, condition)

    def read(self, frame: int, condition: Any) -> Tensor:
        """What a frame reads, in order of frames; what has left the window is written before.

        Raises `ValueError` where a frame that has to be written has not come, or a newer one has been written.
        """
        old = frame - self._written
        if max(old, -1) < self._held - 1:
            raise ValueError(f"frame {frame} reads the memory, which holds newer frames; go back with `rollback` first")
        if old >= self._held:
            if old not in self._waiting:
                raise ValueError(f"frame {frame} reads the memory, and frame {old} is not finished")
            for held in sorted(each for each in self._waiting if each <= old):
                self._write(self._waiting.pop(held))
                self.writes += 1
        self.reads += 1
        return _read(self._rule, self._model, self.state, condition)

    def _write(self, frame: FinishedFrame) -> None:
        self.state = self._rule.write(self.state, self._model.memory_writes(frame.latent, frame.condition))
        self._held = frame.frame + 1
        self._history.add(frame, self.state)

    # -- going back, and apart -----------------------------------------------------------------------------------------

    @torch.inference_mode()
    def rollback(self, frame: int) -> None:
        """Take back this frame and all later ones: finished frames from it on are forgotten, and it is the next to be
        read. Frames that it does not read wait again. `reads` and `writes` stay: they count what was done.

        Raises `ValueError` where more frames would have to be taken back than are kept.
        """
        held = max(frame - self._written + 1, 0)
        if held < self._held:
            if held < self._history.oldest:
                raise ValueError(
                    f"the memory can't go back to frame {frame}: it can to frame "
                    f"{self._history.oldest + self._written - 1} and later ones; keep more with a larger `rollback`, "
                    "or restore a checkpoint"
                )
            self.state, again, undone = self._history.back(held)
            self._held = held
            for each in again:
                self._write(each)
            self._waiting |= {each.frame: each for each in undone}
        self._waiting = {number: each for number, each in self._waiting.items() if number < frame}

    def checkpoint(self) -> MemoryCheckpoint:
        """What `restore` goes on from."""
        waiting = tuple(self._waiting[frame] for frame in sorted(self._waiting))
        return MemoryCheckpoint(self.state, self._held, waiting, self.reads, self.writes)

    def restore(self, checkpoint: MemoryCheckpoint) -> None:
        """Go on from a checkpoint, of this memory or of another one of the same rule and model. What was before it
        can't be gone back to.

        Raises `ValueError` where its state is of another rule or shape.
        """
        given, own = (
            [list(part.shape) for part in state] for state in (checkpoint.state, _empty(self._rule, self._model))
        )
        if given != own:
            raise ValueError(
                f"the checkpoint's state has the shapes {given}, and this memory has {own}; restore it with the rule, "
                "the options and the model that it was taken with"
            )
        self._begin(checkpoint)

    def _begin(self, checkpoint: MemoryCheckpoint) -> None:
        device = self._model.device
        self.state = tuple(part.to(device) for part in checkpoint.state)
        self._held = checkpoint.held
        self._waiting = {
            each.frame: FinishedFrame(each.frame, each.latent.to(device), each.condition) for each in checkpoint.waiting
        }
        self.reads, self.writes = checkpoint.reads, checkpoint.writes
        self._history = MemoryHistory(self._rollback, self._held, self.state)

    def fork(self) -> FrameMemory:
        """A second memory that holds the same and goes its own way from here. Nothing is copied: a state is shared
        until either side writes, which makes a new one."""
        other = FrameMemory(self._rule, cast("AnyWorldModel", self._model), self._written, self._rollback)
        other.restore(self.checkpoint())
        other._history = self._history.copy()
        return other

    # -- what it holds -------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def holds(self, condition: Any) -> Tensor:
        """How well the places are known that a frame of this condition shows; see the model's `memory_familiarity` for
        shape and meaning. The embedded world gives a value for each cell in view, `[rows, columns]`.

        Raises `ValueError` where the model can't say.
        """
        if not isinstance(self._model, FamiliarityModel):
            raise ValueError("the model does not say what its memory holds; give it a method memory_familiarity")
        return self._model.memory_familiarity(
            self._rule.attend(self.state, self._model.memory_queries(condition)), condition
        )

    @property
    def waiting(self) -> int:
        """Finished frames that are held back."""
        return len(self._waiting)

    @property
    def state_bytes(self) -> int:
        """Bytes of the state; the same from the first frame to the last."""
        return sum(part.nbytes for part in self.state)

    @property
    def nbytes(self) -> int:
        """Bytes of all that is held: the state, frames that wait, and what it takes to go back."""
        tensors = [*self.state, *(each.latent for each in self._waiting.values()), *self._history.tensors]
        return sum({id(part): part.nbytes for part in tensors}.values())


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
