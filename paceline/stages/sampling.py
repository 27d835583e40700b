"""From a model's logits to the distribution that a token is drawn from: the same processors, in the same order and with
the same definitions, as Transformers' `generate` (repetition penalty, temperature, top-k, top-p)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.pipeline.speculation.window import Coupling

__all__ = ["SAMPLING_DEFAULTS", "SamplingParams", "warp"]

SAMPLING_DEFAULTS = {"temperature": 0.7, "top_k": 0.0, "top_p": 1.0, "repetition_penalty": 1.0}
"""What a generation draws with where nothing else is asked for."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens of a session are chosen. `temperature` 0 takes the likeliest token; `top_k` 0, `top_p` 1 and
    `repetition_penalty` 1 change nothing. Raises `ValueError` where a value has no meaning."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    coupling: Coupling = Coupling.gumbel

    def __post_init__(self) -> None:
        wrong = [
            f"{name} is {value} but has to be {rule}"
            for name, value, rule, right in (
                ("temperature", self.temperature, "0 or more", 0 <= self.temperature < math.inf),
                ("top_k", self.top_k, "0 (all tokens) or more", self.top_k >= 0),
                ("top_p", self.top_p, "above 0 and at most 1", 0 < self.top_p <= 1),
                ("repetition_penalty", self.repetition_penalty, "above 0", 0 < self.repetition_penalty < math.inf),
                ("seed", self.seed, "from 0 to 2**64 - 1", 0 <= self.seed < 1 << 64),
            )
            if not right
        ]
        if wrong:
            raise ValueError("; ".join(wrong))

    def options(self) -> dict[str, float]:
        """Those that a session is drawn with, by name; its seed is its own."""
        return {name: float(getattr(self, name)) for name in SAMPLING_DEFAULTS}

    @property
    def effective_coupling(self) -> Coupling:
        """The coupling that is meant: at temperature 0 there is one token to take, and all couplings are `greedy`."""
        return Coupling.greedy if self.temperature == 0 else self.coupling


def warp(logits: Tensor, params: SamplingParams, contexts: Sequence[Sequence[int]] | None = None) -> Tensor:
    """Log-probabilities that tokens are drawn from, float32 `[n, V]`, of logits `[n, V]`.

    Row i follows the tokens `contexts[i]`, prompt included; only a repetition penalty looks at them. Under the `greedy`
    coupling (so at temperature 0) the result is not normalised, so that rounding can't make two logits equal; its
    largest entry is the token. Raises `ValueError` where there is a penalty and no contexts.
    """
    scores = logits.to(torch.float32)
    if params.repetition_penalty != 1.0:
        scores = _penalised(scores, params.repetition_penalty, contexts)
    if params.effective_coupling is Coupling.greedy:
        return scores
    if params.temperature != 1.0:
        scores = scores / params.temperature
    vocabulary = scores.shape[-1]
    if 0 < params.top_k < vocabulary:
        least = torch.topk(scores, params.top_k, dim=-1).values[..., -1:]
        scores = scores.masked_fill(scores < least, -math.inf)
    if params.top_p < 1.0:
        ordered, index = torch.sort(scores, descending=False, dim=-1)
        beyond = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1.0 - params.top_p
        beyond[..., -1] = False
        scores = scores.masked_fill(beyond.scatter(-1, index, beyond), -math.inf)
    return scores.log_softmax(dim=-1)


def _penalised(scores: Tensor, penalty: float, contexts: Sequence[Sequence[int]] | None) -> Tensor:
    """Tokens of the context made less likely (Keskar et al. 2019): positive scores divided, negative multiplied."""
    if contexts is None or len(contexts) != scores.shape[0]:
        raise ValueError("a repetition penalty needs the context of each row")
    scores = scores.clone()
    for row, context in zip(scores, contexts, strict=True):
        seen = torch.tensor(sorted(set(context)), dtype=torch.int64, device=scores.device)
        if seen.numel():
            old = row[seen]
            row[seen] = torch.where(old < 0, old * penalty, old / penalty)
    return scores
