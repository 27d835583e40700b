"""The draft stage: extends branches of many sessions by one token each, in one forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from paceline.kernels.gumbel import DrawKey, GumbelRows
from paceline.pipeline.speculation.drafter import Branch, Rollback
from paceline.pipeline.speculation.window import Coupling, Window
from paceline.stages.couplings import alternatives, draw
from paceline.stages.finite import can_choose
from paceline.stages.lm.branches import Branches
from paceline.stages.lm.decoder import Decoder
from paceline.stages.lm.drafter import DraftStep
from paceline.stages.sampling import warp
from paceline.stages.sampling_params import SamplingParams

__all__ = ["ModelDraftStage"]


@dataclass(slots=True)
class _Draws:
    """What the draws of a branch were made from, by position: q(x) and the warped row."""

    made: dict[int, tuple[float, Tensor]] = field(default_factory=dict)


class ModelDraftStage:
    """A model that drafts. `params` gives how the tokens of a session are chosen. `vocab` is the number of tokens that
    the target can give; those that the drafter does not have are never drafted, and where one stands in a text the
    drafter reads another."""

    def __init__(self, decoder: Decoder, params: Callable[[int], SamplingParams], vocab: int) -> None:
        self._decoder, self._params, self._vocab = decoder, params, vocab
        self._shared = min(vocab, decoder.vocab)
        self._noise = GumbelRows(vocab, decoder.device)
        self._branches = Branches(decoder)
        self._seeds: dict[int, int] = {}
        self._draws: dict[int, dict[int, _Draws]] = {}

    def open(self, session: int, seed: int) -> None:
        """Make ready for a session."""
        self._branches.open(session)
        self._seeds[session] = seed
        self._draws[session] = {0: _Draws()}

    def close(self, session: int) -> None:
        """Free a session."""
        self._branches.close(session)
        del self._seeds[session], self._draws[session]

    def step(self, steps: Sequence[tuple[Branch, list[int]]], others: int) -> list[DraftStep]:
        """Draft one token for each branch, given with all tokens before it; name up to `others` alternatives."""
        inputs = [self._branches.new_tokens(branch, tokens) for branch, tokens in steps]
        batch = [(sequence, self._read(new)) for sequence, new in inputs]
        logits = torch.cat(self._decoder.forward(batch, keep=[1] * len(batch)))[:, : self._shared]
        if not can_choose(logits):
            # Any distribution may draft, and this one never fails a session of the target's.
            logits = torch.where(torch.isfinite(logits.amax(dim=-1, keepdim=True)), logits, 0.0)
        # Sessions with the same parameters are drawn for in one go.
        alike: dict[SamplingParams, list[int]] = {}
        for place, (branch, _) in enumerate(steps):
            alike.setdefault(self._params(branch.session), []).append(place)
        found: dict[int, DraftStep] = {}
        for params, places in alike.items():
            rows = logits if len(alike) == 1 else logits[places]
            drafted = self._draw(params, [steps[place] for place in places], rows, others)
            found |= zip(places, drafted, strict=True)
        return [found[place] for place in range(len(steps))]

    def _draw(
        self, params: SamplingParams, steps: Sequence[tuple[Branch, list[int]]], logits: Tensor, others: int
    ) -> list[DraftStep]:
        """The tokens of branches whose sessions have the same parameters, from their logits `[n, V]`."""
        coupling = params.effective_coupling
        rows = warp(logits, params, self._contexts(params, [tokens for _, tokens in steps]))
        if self._shared < self._vocab:
            # As wide as the target's: the noise and the residual of a rejection are over the same tokens.
            rows = torch.nn.functional.pad(rows, (0, self._vocab - self._shared), value=-torch.inf)
        keys = [DrawKey(self._seeds[b.session], b.position, b.epoch, b.number) for b, _ in steps]
        drawn = draw(coupling, rows, keys, self._noise)
        if others:
            second = alternatives(coupling, rows, keys, drawn.tokens, others, self._noise)
        else:
            second = [() for _ in steps]
        if drawn.chances:
            for (branch, _), chance, row in zip(steps, drawn.chances, rows, strict=True):
                draws = self._draws[branch.session].setdefault(branch.number, _Draws())
                # A copy: the row of one branch should not hold those of all others.
                draws.made[branch.position] = chance, row.clone()
        return [
            DraftStep(branch, token, alternative)
            for (branch, _), token, alternative in zip(steps, drawn.tokens, second, strict=True)
        ]

    def _read(self, tokens: list[int]) -> Tensor:
        """Tokens for the model; one that it does not have is read as the first of its own."""
        given = torch.tensor(tokens, dtype=torch.int64)
        return given.masked_fill(given >= self._decoder.known, 0)

    def _contexts(self, params: SamplingParams, texts: Sequence[list[int]]) -> Sequence[list[int]] | None:
        if params.repetition_penalty == 1.0:
            return None
        return [[token for token in tokens if token < self._shared] for tokens in texts]

    def settle(self, session: int, length: int, rollback: Rollback | None) -> None:
        """After a verdict: `length` tokens are committed, and `rollback` says what the drafter went back to."""
        promoted = None if rollback is None else rollback.hedge
        self._branches.settle(session, length, rollback is not None, promoted)
        draws = self._draws[session]
        if rollback is not None:
            kept = draws.get(promoted) if promoted is not None else None
            self._draws[session] = {0: kept or _Draws()}
        else:
            live = self._branches.numbers(session)
            self._draws[session] = {number: held for number, held in draws.items() if number in live}
        main = self._draws[session][0].made
        for position in [p for p in main if p < length]:
            del main[position]

    def evidence(self, window: Window) -> tuple[Tensor | None, Tensor | None]:
        """What the acceptor needs of a window under `rejection`: q(x) of its tokens `[n]`, and rows `[n, V]`."""
        if self._params(window.session).effective_coupling is not Coupling.rejection or not window.drafted:
            return None, None
        made = self._draws[window.session][0].made
        found = [made[position] for position in range(window.start + window.known, window.end)]
        return torch.tensor([chance for chance, _ in found], dtype=torch.float64), torch.stack(
            [row for _, row in found]
        )
