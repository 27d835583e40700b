"""A layer range of a causal language model with the KV of many sequences: what the workers compute with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from paceline.stages.lm.blueprint import Blueprint
from paceline.stages.lm.execution import Execution
from paceline.stages.lm.layer_run import LayerRun
from paceline.stages.lm.loader import load_run
from paceline.stages.lm.rank_tiers import RankTiers
from paceline.stages.lm.self_check import self_check
from paceline.stages.lm.sequence_kv import KV, KVError, SequenceError, SequenceKV
from paceline.stages.lm.sequence_state import SequenceState, reachable
from paceline.stages.lm.tiered_kv import TieredKV
from paceline.tiers.errors import TierError

__all__ = ["Decoder"]

_TRIES = 8
_ROLLBACK = 512
"""Positions that can be taken back in layers whose state has a constant size, where nobody says otherwise."""
_PROMPT = 16
"""New positions from which a forward counts as one over a prompt, whose beginning others may have, too."""


class Decoder:
    """Forwards new tokens of many sequences at once. Not thread-safe.

    Without `rows`, all new tokens are one row of one pass. Results of a position then agree within rounding, whatever
    else is in the pass, as matrix products of different shapes add in different orders.

    With `rows` = R, results are bit-identical however tokens are split over forwards and whatever other sequences are
    there: the positions of a sequence are cut into tiles [0, R), [R, 2R), ..., each tile is computed alone and padded
    to R rows, and position p is always row p mod R of it. So a position is always computed by the same instructions on
    the same shapes, and nothing has to be assumed about kernels but that rows don't leak into one another (as they do
    where experts gather their tokens: only rows = 1 is allowed there).

    With `tiers`, KV lies in blocks over memory tiers, a fork shares them, and a forward is cut into passes that hbm
    holds. KV that can't be read back is computed again where this run is the first, which knows the tokens.

    Layers whose state has a constant size go back `rollback` positions at least, and to none. Where KV of other layers
    is lost further back, all positions are computed again.
    """

    def __init__(
        self,
        run: LayerRun,
        plan: Blueprint,
        rows: int | None = None,
        tiers: TieredKV | None = None,
        rollback: int = _ROLLBACK,
    ) -> None:
        if rows is not None and rows < 1:
            raise ValueError(f"rows is {rows}; it has to be at least 1, or None for packed forwards")
        if rows is not None and rows > 1 and plan.mixes_rows:
            raise ValueError(
                f"rows is {rows}, but the model has experts, which multiply as many rows at once as chose them; take "
                "rows = 1 (one token at a time), or None for packed forwards"
            )
        self._run, self._execution = run, Execution(run, plan.vocab, rows, tiers)
        self.rows = rows
        self.known, self.vocab, self.hidden = plan.rows, plan.vocab, plan.hidden
        self.first, self.last, self.layers = run.first, run.last, run.layers
        self.max_positions = run.max_positions
        self.device, self.dtype = run.device, run.dtype
        self.tiers = tiers
        self._rollback = rollback
        self._sequences: dict[int, KV] = {}
        self._tokens: dict[int, list[int]] = {}
        """By sequence, the tokens of its positions: where KV may get lost and this run can compute it again."""
        self._numbers = count()

    @classmethod
    def load(
        cls,
        folder: Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        layers: tuple[int, int] | None = None,
        rows: int | None = None,
        tiers: RankTiers | None = None,
        rollback: int = _ROLLBACK,
    ) -> Decoder:
        """Load layers `[first, last)` (None: all) of the model in a folder, and check them against the model's own
        forward; see `load_run` for dtype and errors. Raises `TierError` for tiers that can't be."""
        loaded = load_run(folder, torch.device(device), dtype, layers)
        run, plan = loaded.run, loaded.plan
        checked = [cls(run, plan, rows)]
        small = None if tiers is None else TieredKV(tiers.small(run).manager(run))
        if small is not None:
            checked.append(cls(run, plan, rows, small))
        try:
            self_check(loaded.reference, run, plan.rows, checked)
        finally:
            if small is not None:
                small.close()
        return cls(run, plan, rows, None if tiers is None else TieredKV(tiers.manager(run)), rollback)

    # -- sequences -----------------------------------------------------------------------------------------------------

    def open(self) -> int:
        """A new, empty sequence."""
        kv: KV = SequenceKV(self._run.kv_layers) if self.tiers is None else self.tiers.new()
        if any(self._run.of_state):
            kv = SequenceState(kv, self._run.of_state, self._rollback)
        return self._add(kv, [])

    def fork(self, sequence: int, length: int) -> int:
        """A new sequence that has the first `length` positions of another one: a copy, or over tiers the same blocks
        until one of both writes. Raises `ValueError` where there are not so many, and where states of constant size
        don't go back so far."""
        kv = self._held(sequence, length)
        with torch.inference_mode():
            return self._add(kv.fork(length), self._tokens.get(sequence, [])[:length])

    def truncate(self, sequence: int, length: int) -> None:
        """Forget the positions from `length` on. Raises `ValueError` where there are not so many, and where states of
        constant size don't go back so far."""
        self._held(sequence, length).length = length
        if sequence in self._tokens:
            del self._tokens[sequence][length:]

    def park(
        self, sequence: int, length: int, path: Path, note: bytes, beat: Callable[[], None] = lambda: None
    ) -> None:
        """Write the KV of the first `length` positions of a sequence to a file, with a note; `beat` is called now and
        then. Raises `TierError` where that can't be done, `ValueError` without tiers and where there are not so many
        positions."""
        self._tiered.park(self._held(sequence, length), length, path, note, beat)

    @torch.inference_mode()
    def take_up(
        self, sequence: int, path: Path, tokens: Sequence[int], note: bytes, beat: Callable[[], None] = lambda: None
    ) -> str | None:
        """Let a sequence hold the KV of `tokens` that was parked with this note.

        KV that can't be read back is computed again where this run is the first, and what is returned says why.
        Elsewhere `SequenceError` is raised. Raises `ValueError` without tiers.
        """
        tiers, empty, why = self._tiered, self._held(sequence), None
        try:
            self._sequences[sequence] = tiers.take_up(path, len(tokens), note, beat)
            empty.close()
        except TierError as error:
            if not self.first:
                raise SequenceError(sequence, error) from error
            why = str(error)
            again = torch.tensor(tokens, dtype=torch.int64, device=self.device)
            self._intact([sequence], [empty], [again], [0])
            tiers.recomputed += len(tokens)
        if self.first:
            self._tokens[sequence] = list(tokens)
            tiers.remember(self._sequences[sequence], tokens)
        return why

    def length(self, sequence: int) -> int:
        """How many positions a sequence has."""
        return self._held(sequence).length

    def close(self, sequence: int) -> None:
        """Free a sequence."""
        self._held(sequence).close()
        del self._sequences[sequence]
        self._tokens.pop(sequence, None)

    @property
    def sequences(self) -> list[int]:
        """Open sequences."""
        return list(self._sequences)

    def nbytes(self, sequence: int | None = None) -> int:
        """Bytes of KV held for a sequence; None: for all."""
        if sequence is not None:
            return self._held(sequence).nbytes
        return sum(kv.nbytes for kv in self._sequences.values())

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights of this run of layers."""
        return self._run.weight_bytes

    # -- computing -----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def forward(self, batch: Sequence[tuple[int, Tensor]], keep: Sequence[int] | None = None) -> list[Tensor]:
        """Append new inputs to sequences; all or none.

        `batch`: by sequence, token ids `[n]` int64 where the run is the first, else hidden states `[n, C]`; n >= 1 may
        differ. Returns in that order logits `[n, V]` float32 where the run is the last, else hidden states `[n, C]`.
        `keep`: of how many last positions logits are wanted, by sequence; the head is not computed for the others.

        Raises `ValueError` for inputs of another shape or beyond `max_positions`, and for a sequence that is not open
        or is named twice; `SequenceError` for one whose KV finds no room, or is lost and can't be computed again.
        """
        kvs = [self._held(sequence) for sequence, _ in batch]
        if not batch:
            return []
        if len({sequence for sequence, _ in batch}) < len(batch):
            raise ValueError("a sequence is named twice in one forward; join its inputs")
        inputs = [self._checked(given, kv.length) for (_, given), kv in zip(batch, kvs, strict=True)]
        if keep is None:
            keep = [len(given) for given in inputs]
        elif len(keep) != len(batch) or any(not 1 <= k <= len(given) for k, given in zip(keep, inputs, strict=True)):
            raise ValueError(f"keep is {list(keep)}; it names, for each of {len(batch)} sequences, 1 to n positions")
        before = [kv.length for kv in kvs]
        try:
            kvs, inputs = self._adopted(batch, kvs, inputs, keep)
            found = self._intact([sequence for sequence, _ in batch], kvs, inputs, keep)
        except BaseException:
            for (sequence, _), length in zip(batch, before, strict=True):
                self.truncate(sequence, min(length, self.length(sequence)))
            raise
        for (sequence, _), given in zip(batch, inputs, strict=True):
            if self.tiers is not None and sequence in self._tokens:
                tokens = self._tokens[sequence]
                tokens += given.tolist()
                if len(given) >= _PROMPT:
                    self.tiers.remember(self._sequences[sequence], tokens)
        return found

    def _intact(
        self, sequences: Sequence[int], kvs: Sequence[KV], inputs: Sequence[Tensor], keep: Sequence[int]
    ) -> list[Tensor]:
        """Forward, as often as it takes until no KV was lost on the way."""
        starts = [kv.length for kv in kvs]
        while True:
            try:
                return self._execution.forward(kvs, inputs, keep)
            except KVError as error:
                for kv, start in zip(kvs, starts, strict=True):
                    kv.length = start
                self._recompute(next(number for number in sequences if self._sequences[number] is error.kv), error)

    def _adopted(
        self, batch: Sequence[tuple[int, Tensor]], kvs: list[KV], inputs: list[Tensor], keep: Sequence[int]
    ) -> tuple[list[KV], list[Tensor]]:
        """Sequences and inputs, less what a sequence before had computed of the same text: its blocks are shared. Only
        where this run holds all layers, as others need the hidden states of every position, and all of them keep KV."""
        if self.tiers is None or not (self.first and self.last) or any(self._run.of_state):
            return kvs, inputs
        kvs, inputs = list(kvs), list(inputs)
        for index, ((sequence, _), k) in enumerate(zip(batch, keep, strict=True)):
            if len(inputs[index]) - k < _PROMPT:
                continue
            tokens = self._tokens[sequence]
            own = len(tokens)
            given = inputs[index].tolist()
            found = self.tiers.adopt(kvs[index], [*tokens, *given[: len(given) - k + 1]])
            if found is not None:
                kvs[index].close()
                kvs[index] = self._sequences[sequence] = found
                tokens += given[: found.length - own]
                inputs[index] = inputs[index][found.length - own :]
        return kvs, inputs

    def _recompute(self, sequence: int, error: KVError) -> None:
        """Compute the KV of a sequence again from where it was lost. Raises `SequenceError` where that can't be."""
        kv, tokens = self._sequences[sequence], self._tokens.get(sequence)
        length = kv.length
        # Where a disk fails for good, what is computed again may be lost again, until the tiers stop using it.
        for _ in range(length + _TRIES):
            if tokens is None or self.tiers is None or error.start is None or error.kv is not kv:
                break
            self.tiers.forget()
            kept = reachable(kv, min(kv.length, error.start))
            self.tiers.recomputed += kv.length - kept
            kv.length = kept
            try:
                if kept < length:
                    again = torch.tensor(tokens[kept:length], dtype=torch.int64, device=self.device)
                    self._execution.forward([kv], [again], [0])
                return
            except KVError as another:
                error = another
        raise SequenceError(sequence, error.__cause__ or error) from error

    @property
    def _tiered(self) -> TieredKV:
        if self.tiers is None:
            raise ValueError("this decoder has no tiers, and KV is parked from those alone")
        return self.tiers

    # -- checks --------------------------------------------------------------------------------------------------------

    def _add(self, kv: KV, tokens: list[int]) -> int:
        number = next(self._numbers)
        self._sequences[number] = kv
        if self.tiers is not None and self.first:
            self._tokens[number] = tokens
        return number

    def _held(self, sequence: int, length: int = 0) -> KV:
        kv = self._sequences.get(sequence)
        if kv is None:
            raise ValueError(f"sequence {sequence} is not open")
        if not 0 <= length <= kv.length:
            raise ValueError(f"sequence {sequence} has {kv.length} positions, not {length}")
        return kv

    def _checked(self, given: Tensor, length: int) -> Tensor:
        right = given.dim() == 1 and given.dtype == torch.int64 if self.first else given.dim() == 2
        if not right or not len(given) or (not self.first and given.shape[1] != self.hidden):
            wanted = "token ids [n] int64" if self.first else f"hidden states [n, {self.hidden}]"
            raise ValueError(f"got {list(given.shape)} {given.dtype}; this run of layers takes {wanted}, n >= 1")
        if self.first and (int(given.max()) >= self.known or int(given.min()) < 0):
            raise ValueError(
                f"token {int(given.max())} is none of the {self.known} that the model has; take its own tokenizer"
            )
        if self.max_positions is not None and length + len(given) > self.max_positions:
            raise ValueError(
                f"{length} + {len(given)} positions pass the model's limit of {self.max_positions}; "
                "shorten the prompt or ask for fewer tokens"
            )
        return given.to(self.device) if self.first else given.to(self.device, self.dtype)
