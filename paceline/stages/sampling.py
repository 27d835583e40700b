"""From a model's logits to the distribution that a token is drawn from: the same processors, in the same order and with
the same definitions, as Transformers' `generate` (repetition penalty, temperature, top-k, top-p)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from paceline.pipeline.speculation.window import Coupling
from paceline.stages.sampling_params import SamplingParams

__all__ = ["warp"]


def warp(logits: Tensor, params: SamplingParams, contexts: Sequence[Sequence[int]] | None = None) -> Tensor:
    """Log-probabilities that tokens are drawn from, float32 `[n, V]`, of logits `[n, V]`.

    Row i follows the tokens `contexts[i]`, prompt included; only a repetition penalty looks at them. Under the `greedy`
    coupling (so below `GREEDY_BELOW`) the result is not normalised, so that rounding can't make two logits equal; its
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
