"""One sequence in layers of which some have a state of constant size: the states, and what it takes to go back.

A state can't be truncated as KV can. So each layer keeps, of the last positions that may have to be taken back, the
rows that it was given, in stretches with the state before each; going back restores the state before a stretch and
computes the rows that stay again. Where every row is computed alone (`Decoder` with `rows`), a state that was rolled
back has the bits of one that never was further. Rows are much smaller than the states between them, and this holds for
any rule, be it linear in the state or not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.stages.lm.recurrence import Recurrence, State, nbytes_of
from paceline.stages.lm.sequence_kv import KV

__all__ = ["RollbackError", "SequenceState", "reachable"]


class RollbackError(ValueError):
    """A sequence was to be taken back further than its states can be."""


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Rows of consecutive positions from `start` on, and the state before them."""

    start: int
    before: State
    rows: tuple[Tensor, ...]
    alone: bool

    @property
    def stop(self) -> int:
        return self.start + len(self.rows[0])

    def run(self, rule: Recurrence) -> tuple[State, Tensor]:
        """The state after the rows, and what they read."""
        if not self.alone:
            return rule.advance(self.before, self.rows)
        state, reads = self.before, []
        for row in range(len(self.rows[0])):
            state, read = rule.advance(state, tuple(part[row : row + 1] for part in self.rows))
            reads.append(read)
        return state, torch.cat(reads)


class _Layer:
    """The state of one layer after `stop` positions."""

    __slots__ = ("rule", "state", "stop", "stretches")

    def __init__(self) -> None:
        self.rule: Recurrence | None = None
        self.state: State = ()
        self.stop = 0
        self.stretches: deque[_Stretch] = deque()

    def advance(self, rule: Recurrence, rows: tuple[Tensor, ...], alone: bool) -> Tensor:
        if self.rule is None:
            self.rule, self.state = rule, rule.empty()
        # Copies: a view would hold the rows of all sequences of the pass.
        stretch = _Stretch(self.stop, self.state, tuple(part.clone() for part in rows), alone)
        self.state, read = stretch.run(rule)
        self.stretches.append(stretch)
        self.stop = stretch.stop
        return read

    def cut(self, length: int) -> None:
        while self.stop > length:
            stretch = self.stretches.pop()
            self.state, self.stop = stretch.before, stretch.start
            if stretch.start < length and self.rule is not None:
                self.advance(self.rule, tuple(part[: length - stretch.start] for part in stretch.rows), stretch.alone)

    def forget(self, oldest: int) -> None:
        """Going back before `oldest` will not be asked for."""
        while self.stretches and self.stretches[0].stop <= oldest:
            self.stretches.popleft()

    @property
    def oldest(self) -> int:
        return self.stretches[0].start if self.stretches else self.stop

    def fork(self) -> _Layer:
        other = _Layer()
        # Tensors of states and rows are never written in place.
        other.rule, other.state, other.stop = self.rule, self.state, self.stop
        other.stretches = deque(self.stretches)
        return other


class SequenceState:
    """The KV of some layers and the states of the others. `of_state` says by layer which are the others; `rollback`
    is how many of the last positions can be taken back at least.

    A pass advances the states layer by layer, and then sets `length`. Where it fails halfway, setting `length` to what
    it was takes back what it has done.
    """

    __slots__ = ("_kv", "_layers", "_length", "_places", "_rollback")

    def __init__(self, kv: KV, of_state: Sequence[bool], rollback: int) -> None:
        self._kv, self._rollback, self._length = kv, rollback, kv.length
        self._layers = {index: _Layer() for index, held in enumerate(of_state) if held}
        kv_layers = [index for index, held in enumerate(of_state) if not held]
        self._places = {index: place for place, index in enumerate(kv_layers)}

    @property
    def length(self) -> int:
        """Positions that hold, in all layers. Setting it lower takes positions back. Raises `RollbackError` for
        positions that are too far back; to take all back is always possible."""
        return self._length

    @length.setter
    def length(self, length: int) -> None:
        if length == 0:
            self._layers = {index: _Layer() for index in self._layers}
        elif length < self.oldest:
            raise RollbackError(
                f"{length} positions of {self._length} were to be kept, and the states of its layers go back to "
                f"{self.oldest} at most"
            )
        self._kv.length = self._length = length
        for layer in self._layers.values():
            layer.cut(length)
            layer.forget(length - self._rollback)

    @property
    def oldest(self) -> int:
        """The least length, but for 0, that can be gone back to."""
        return max((layer.oldest for layer in self._layers.values()), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes held: KV, states, and rows with the states between them."""
        found = self._kv.nbytes
        for layer in self._layers.values():
            found += nbytes_of(layer.state)
            found += sum(nbytes_of(stretch.rows) + nbytes_of(stretch.before) for stretch in layer.stretches)
        return found

    @property
    def state_bytes(self) -> int:
        """Bytes of the states alone; the same at any length above 0."""
        return sum(nbytes_of(layer.state) for layer in self._layers.values())

    def states(self) -> list[State]:
        """The state of each such layer, in their order."""
        return [layer.state for layer in self._layers.values()]

    def reserve(self, positions: int) -> None:
        """See `KV`."""
        self._kv.reserve(positions)

    def write(self, layer: int, start: int, k_GND: Tensor, v_GND: Tensor) -> None:
        """See `KV`."""
        self._kv.write(self._places[layer], start, k_GND, v_GND)

    def attend(
        self, layer: int, q_HMD: Tensor, start: int, scale: float | None, window: int | None, new: range
    ) -> Tensor:
        """See `KV`."""
        return self._kv.attend(self._places[layer], q_HMD, start, scale, window, new)

    def recur(self, layer: int, rows: tuple[Tensor, ...], rule: Recurrence, alone: bool) -> Tensor:
        """Advance the state of a layer by rows `[N, ...]` of the next positions, and give what they read. With `alone`
        every row is computed by itself, so that bits don't depend on how many come at once."""
        return self._layers[layer].advance(rule, rows, alone)

    def fork(self, length: int) -> SequenceState:
        """See `KV`; states are shared until either side goes on. Raises `RollbackError`."""
        if 0 < length < self.oldest:
            raise RollbackError(f"a fork at {length} positions was asked for, and the states go back to {self.oldest}")
        other = SequenceState(self._kv.fork(length), (), self._rollback)
        other._places = self._places
        other._length = self._length
        other._layers = {index: layer.fork() for index, layer in self._layers.items()}
        other.length = length
        return other

    def close(self) -> None:
        """See `KV`."""
        self._kv.close()
        self._layers = {index: _Layer() for index in self._layers}
        self._length = 0


def reachable(kv: KV, length: int) -> int:
    """The largest length up to `length` that a sequence can be truncated to."""
    return 0 if isinstance(kv, SequenceState) and length < kv.oldest else length
