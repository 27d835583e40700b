"""What it takes to go back in a context memory: the frames that were written last, and states between them.

A state can't be unwritten, whatever the rule. But the finished latent of a frame is small (12 KiB in the embedded
world, where a state is 104 KiB and the keys of a frame are 512 KiB), and to write it again gives the same bits. So
latents are kept, and a state for every so many of them; to go back is to write some frames again on an older state.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from paceline.stages.memory.protocol import State

__all__ = ["FinishedFrame", "MemoryHistory"]


@dataclass(frozen=True, slots=True)
class FinishedFrame:
    """A frame as it is written: its number, its finished latent, and the model's condition."""

    frame: int
    latent: Tensor
    condition: Any


class MemoryHistory:
    """The last frames of one session's memory, in a size that does not grow: up to twice `depth` frames and three
    states."""

    def __init__(self, depth: int, held: int, state: State) -> None:
        """It begins with a state that holds the frames below `held`; `depth` of the frames that are added can be taken
        back at least."""
        self._depth = depth
        self._frames: deque[FinishedFrame] = deque()
        self._states: deque[tuple[int, State]] = deque([(held, state)])

    def add(self, written: FinishedFrame, state: State) -> None:
        """A frame was written, and `state` came of it."""
        held = written.frame + 1
        if self._depth == 0:
            self._states = deque([(held, state)])
            return
        self._frames.append(written)
        if held - self._states[-1][0] >= self._depth:
            self._states.append((held, state))
        while len(self._states) > 1 and self._states[1][0] <= held - self._depth:
            self._states.popleft()
        while self._frames[0].frame < self._states[0][0]:
            self._frames.popleft()

    @property
    def oldest(self) -> int:
        """The least `held` that can be gone back to."""
        return self._states[0][0]

    def back(self, held: int) -> tuple[State, list[FinishedFrame], list[FinishedFrame]]:
        """Go back to the frames below `held`, which is `oldest` or more. Gives a state, the frames to write on it (and
        to add again), and the frames that are written no more."""
        while self._states[-1][0] > held:
            self._states.pop()
        start, state = self._states[-1]
        again = [each for each in self._frames if start <= each.frame < held]
        undone = [each for each in self._frames if each.frame >= held]
        self._frames = deque(each for each in self._frames if each.frame < start)
        return state, again, undone

    def copy(self) -> MemoryHistory:
        """A history that goes on by itself. Tensors are shared: they are never written in place."""
        other = MemoryHistory(self._depth, *self._states[0])
        other._frames, other._states = self._frames.copy(), self._states.copy()
        return other

    @property
    def tensors(self) -> list[Tensor]:
        """All that it holds."""
        return [*(each.latent for each in self._frames), *(part for _, state in self._states for part in state)]
