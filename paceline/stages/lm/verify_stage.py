"""The verify stage: a run of the target's layers over windows of many sessions; the last run judges them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.kernels.gumbel import GumbelRows
from paceline.pipeline.speculation.acceptor import Check
from paceline.pipeline.speculation.window import Coupling, Window
from paceline.stages.couplings import Judgement, Ruling, judge_rows
from paceline.stages.finite import NotFinite, can_choose
from paceline.stages.lm.decoder import Decoder
from paceline.stages.lm.sequence_kv import SequenceError
from paceline.stages.sampling import warp
from paceline.stages.sampling_params import SamplingParams

__all__ = ["Case", "VerifyStage"]


@dataclass(frozen=True, slots=True)
class Case:
    """A check with what it needs: the tokens before and in its window, the session's seed, the drafter's evidence."""

    check: Check
    tokens: list[int]
    seed: int
    chances: Tensor | None = None
    draft_rows: Tensor | None = None


class VerifyStage:
    """Forwards windows through layers that this rank holds. `params` is as for the drafter's
    stage, `vocab` the number of tokens that the model can give."""

    def __init__(self, decoder: Decoder, params: Callable[[int], SamplingParams], vocab: int) -> None:
        self._decoder, self._params, self._vocab = decoder, params, vocab
        self._noise = GumbelRows(vocab, decoder.device)
        self._sequences: dict[int, int] = {}
        self._carry: dict[int, Tensor] = {}
        self._rows: dict[int, Tensor] = {}

    def open(self, session: int) -> None:
        """Make ready for a session."""
        self._sequences[session] = self._decoder.open()

    def sequence_of(self, session: int) -> int:
        """The decoder's sequence of a session."""
        return self._sequences[session]

    @property
    def decoder(self) -> Decoder:
        """What computes."""
        return self._decoder

    def close(self, session: int) -> None:
        """Free a session."""
        self._decoder.close(self._sequences.pop(session))
        self._carry.pop(session, None)
        self._rows.pop(session, None)

    def session_of(self, sequence: int) -> int:
        """The session of a decoder's sequence."""
        return next(session for session, held in self._sequences.items() if held == sequence)

    @property
    def sessions(self) -> list[int]:
        """Open sessions."""
        return list(self._sequences)

    def forward(
        self, windows: Sequence[Window], hidden: Sequence[Tensor | None], checks: Sequence[Check | None]
    ) -> list[Tensor | None]:
        """Compute windows of different sessions together; those without tokens are left out. Returns hidden states for
        the next run; nothing where this is the last, which keeps the logits for `rule`. Raises `SequenceError` for a
        session that can't go on, also where its logits are NaN or infinite; the same windows may be forwarded again
        without it.

        `hidden` are those of the run before (nothing where this is the first); `checks` say which rows are of use.
        """
        out: list[Tensor | None] = [None] * len(windows)
        places, batch, keep = [], [], []
        for place, (window, states, check) in enumerate(zip(windows, hidden, checks, strict=True)):
            sequence = self._sequences[window.session]
            # This is all of a rollback.
            self._decoder.truncate(sequence, window.start)
            if not window.tokens:
                continue
            given = torch.tensor(window.tokens, dtype=torch.int64) if states is None else states
            places.append(place)
            batch.append((sequence, given))
            keep.append(len(window.tokens) - max(0, check.rows.start) if check is not None and len(check.rows) else 1)
        for place, result, kept in zip(
            places, self._decoder.forward(batch, keep if self._decoder.last else None), keep, strict=True
        ):
            if not self._decoder.last:
                out[place] = result
                continue
            session = windows[place].session
            if not can_choose(result):
                raise SequenceError(self._sequences[session], NotFinite("the logits hold"))
            # The last row is the carry-over row of the next window, whatever becomes of this one.
            self._rows[session] = result[len(result) - kept :]
        return out

    def rule(self, cases: Sequence[Case]) -> list[Ruling]:
        """Judge windows whose pass has run."""
        judgements: dict[Coupling, list[Judgement]] = {}
        places: dict[Coupling, list[int]] = {}
        for place, case in enumerate(cases):
            check, session = case.check, case.check.window.session
            rows = self._rows.pop(session, None)
            if check.carry:
                carry = self._carry[session][None]
                rows = carry if rows is None else torch.cat([carry, rows])
            if rows is None:
                raise RuntimeError(f"session {session}: a window was judged that was never forwarded")
            self._carry[session] = rows[-1]
            used = rows[: len(check.rows)]
            params = self._params(session)
            coupling = params.effective_coupling
            warped = warp(used, params, self._contexts(case, params, len(used))) if len(used) else used
            chances, draft_row = self._evidence(case, coupling)
            judgements.setdefault(coupling, []).append(Judgement(check, warped, case.seed, chances, draft_row))
            places.setdefault(coupling, []).append(place)
        rulings = {
            place: ruling
            for coupling, mine in judgements.items()
            for place, ruling in zip(places[coupling], judge_rows(coupling, mine, self._noise), strict=True)
        }
        return [rulings[place] for place in range(len(cases))]

    def _contexts(self, case: Case, params: SamplingParams, rows: int) -> list[list[int]] | None:
        """The tokens before each row's prediction, where anybody looks at them."""
        if params.repetition_penalty == 1.0:
            return None
        return [case.tokens[: case.check.position + index] for index in range(rows)]

    def _evidence(self, case: Case, coupling: Coupling) -> tuple[list[float], Callable[[int], Tensor] | None]:
        """q(x) of the drafted tokens that are judged, and where to get the drafter's row of one of them."""
        if coupling is not Coupling.rejection:
            return [], None
        check = case.check
        if case.chances is None or case.draft_rows is None:
            # A drafter without a distribution: its token was certain.
            def certain(index: int) -> Tensor:
                row = torch.full((self._vocab,), -torch.inf)
                row[check.drafted[index]] = 0.0
                return row

            return [1.0] * len(check.drafted), certain
        return case.chances.tolist(), case.draft_rows.__getitem__

    def rolled_back(self, session: int, to: int, window: Window) -> None:
        """The acceptor accepted less than the window: its last row is no carry-over row then."""
        if to < window.end:
            self._carry.pop(session, None)
