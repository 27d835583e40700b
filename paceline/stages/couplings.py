"""Couplings of a drafter's tokens with the target's: what the drafter draws, and what the target's rows make of it.

`greedy` and `gumbel`: the target's token at a position is argmax(log p) or argmax(log p + g), with the noise g keyed by
(seed, position). The drafter takes the same with its own q, and is right or not. `rejection`: a token x drawn from q is
accepted if u q(x) < p(x), else replaced by a draw from max(p - q, 0), normalised (Leviathan, Kalman and Matias 2023;
Chen et al. 2023); every uniform is keyed by (seed, position, epoch, branch) and what it is for.

All functions take rows of many sessions at once: one call draws for all that is ready.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.kernels.gumbel import DrawKey, GumbelRows, uniforms
from paceline.kernels.philox import Purpose
from paceline.pipeline.speculation.acceptor import Check
from paceline.pipeline.speculation.window import Coupling

__all__ = ["Drawn", "Judgement", "Ruling", "alternatives", "draw", "judge_rows", "sample"]


@dataclass(frozen=True, slots=True)
class Drawn:
    """Tokens drawn for `n` rows, and under `rejection` the chance q(x) that each had (else empty)."""

    tokens: list[int]
    chances: list[float]


@dataclass(frozen=True, slots=True)
class Judgement:
    """One window to judge: `rows` are the target's warped rows `[len(check.rows), V]`, in the order of `check.rows`.

    Under `rejection`, `chances` are q(x) of `check.drafted` as the drafter drew them, and `draft_row(k)` gives the
    drafter's warped row `[V]` behind `check.drafted[k]`; it is asked for one k at most, and only after a rejection.
    """

    check: Check
    rows: Tensor
    seed: int
    chances: Sequence[float] = ()
    draft_row: Callable[[int], Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Ruling:
    """What the rows decided; the arguments of `Acceptor.settle`."""

    accepted: int
    replacement: int | None
    extra: int | None


def sample(weights: Tensor, u: Tensor) -> Tensor:
    """A token for each row of weights `[n, V]` (float64, not negative, some positive) by its uniform `u` `[n]`: the
    inverse distribution function. int64 `[n]`; a token of weight 0 is never taken."""
    reached = weights.cumsum(dim=-1)
    # u < 1, but the product may round up to the whole sum: the last token with any weight is meant then.
    goal = (u.to(weights.device) * reached[:, -1]).unsqueeze(-1)
    last = (reached < reached[:, -1:]).sum(dim=-1)
    return torch.minimum(torch.searchsorted(reached, goal, right=True).squeeze(-1), last)


def draw(coupling: Coupling, log_q: Tensor, keys: Sequence[DrawKey], noise: GumbelRows | None = None) -> Drawn:
    """The drafter's tokens for warped rows `log_q` `[n, V]`, one key each. `noise` is needed for `gumbel`."""
    if coupling is Coupling.rejection:
        weights = log_q.to(torch.float64).exp()
        tokens = sample(weights, uniforms(keys, Purpose.draft))
        total = weights.sum(dim=-1)
        chances = weights.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) / total
        return Drawn(tokens.tolist(), chances.tolist())
    best = _scores(coupling, log_q, keys, noise).argmax(dim=-1)
    return Drawn(best.tolist(), [])


def alternatives(
    coupling: Coupling,
    log_q: Tensor,
    keys: Sequence[DrawKey],
    tokens: Sequence[int],
    count: int,
    noise: GumbelRows | None = None,
) -> list[tuple[tuple[int, float], ...]]:
    """What the target may have instead of each drafted token: up to `count` others for each row, with shares.

    Under `gumbel` the noise is the target's too, so the runners-up of the drafter's own race are the likeliest; under
    `rejection` they are the likeliest tokens of q. A share is the softmax of the scores over all other tokens: a
    ranking that costs nothing, not a promise.
    """
    scores = log_q if coupling is Coupling.rejection else _scores(coupling, log_q, keys, noise)
    count = min(count, scores.shape[-1] - 1)
    if count < 1:
        return [() for _ in tokens]
    drafted = torch.tensor(list(tokens), dtype=torch.int64, device=scores.device).unsqueeze(-1)
    others = scores.scatter(-1, drafted, -torch.inf)
    values, index = torch.topk(others, count, dim=-1)
    # Where nothing else is possible the difference is not a number, and there is nothing to name.
    shares = (values - others.logsumexp(dim=-1, keepdim=True)).exp()
    return [
        tuple((token, share) for token, share in zip(*row, strict=True) if share > 0)
        for row in zip(index.tolist(), shares.tolist(), strict=True)
    ]


def judge_rows(coupling: Coupling, judgements: Sequence[Judgement], noise: GumbelRows | None = None) -> list[Ruling]:
    """What the target's rows make of each window. `noise` is needed for `gumbel`."""
    if not judgements:
        return []
    if coupling is Coupling.rejection:
        return _reject(judgements)
    keys = [DrawKey(j.seed, j.check.position + row) for j in judgements for row in range(len(j.check.rows))]
    rows = torch.cat([j.rows for j in judgements])
    tokens: list[int] = _scores(coupling, rows, keys, noise).argmax(dim=-1).tolist()
    rulings: list[Ruling] = []
    first = 0
    for j in judgements:
        mine = tokens[first : first + len(j.check.rows)]
        first += len(mine)
        accepted = _agreed(mine, j.check.drafted)
        rulings.append(_ruling(j.check, accepted, mine[accepted] if accepted < len(mine) else None))
    return rulings


def _agreed(mine: Sequence[int], drafted: Sequence[int]) -> int:
    for index, token in enumerate(drafted):
        if mine[index] != token:
            return index
    return len(drafted)


def _ruling(check: Check, accepted: int, token: int | None) -> Ruling:
    """`token` is the target's own at the first position that was not accepted."""
    if accepted < len(check.drafted):
        return Ruling(accepted, token, None)
    return Ruling(accepted, None, token if check.extra else None)


def _scores(coupling: Coupling, rows: Tensor, keys: Sequence[DrawKey], noise: GumbelRows | None) -> Tensor:
    if coupling is Coupling.greedy:
        return rows
    if noise is None:
        raise ValueError("the gumbel coupling needs noise")
    return rows + noise.rows([key.seed for key in keys], [key.position for key in keys])


def _reject(judgements: Sequence[Judgement]) -> list[Ruling]:
    accepted = _accepted(judgements)
    # Draws of one purpose go together: positions whose draft was rejected, plain tokens, bonus tokens.
    weights: dict[Purpose, list[Tensor]] = {}
    places: dict[Purpose, list[int]] = {}
    for index, (j, count) in enumerate(zip(judgements, accepted, strict=True)):
        if count < len(j.check.drafted):
            weights.setdefault(Purpose.residual, []).append(_residual(j, count))
            places.setdefault(Purpose.residual, []).append(index)
        elif j.check.extra:
            purpose = Purpose.plain if j.check.plain else Purpose.bonus
            weights.setdefault(purpose, []).append(j.rows[count].to(torch.float64).exp())
            places.setdefault(purpose, []).append(index)
    tokens: list[int | None] = [None] * len(judgements)
    for purpose, rows in weights.items():
        keys = [_key(judgements[i], accepted[i]) for i in places[purpose]]
        for i, token in zip(places[purpose], sample(torch.stack(rows), uniforms(keys, purpose)).tolist(), strict=True):
            tokens[i] = token
    return [_ruling(j.check, count, token) for j, count, token in zip(judgements, accepted, tokens, strict=True)]


def _key(j: Judgement, index: int) -> DrawKey:
    return DrawKey(j.seed, j.check.position + index, j.check.window.epoch)


def _accepted(judgements: Sequence[Judgement]) -> list[int]:
    drafted = [(j, k) for j in judgements for k in range(len(j.check.drafted))]
    if not drafted:
        return [0] * len(judgements)
    u = uniforms([_key(j, k) for j, k in drafted], Purpose.accept)
    rows = torch.cat([j.rows[: len(j.check.drafted)] for j in judgements])
    x = torch.tensor([j.check.drafted[k] for j, k in drafted], dtype=torch.int64, device=rows.device)
    p = rows.gather(-1, x.unsqueeze(-1)).squeeze(-1).to(torch.float64).exp().cpu()
    q = torch.tensor([j.chances[k] for j, k in drafted], dtype=torch.float64)
    passed: list[bool] = (u * q < p).tolist()
    counts: list[int] = []
    first = 0
    for j in judgements:
        mine = passed[first : first + len(j.check.drafted)]
        first += len(mine)
        counts.append(mine.index(False) if False in mine else len(mine))
    return counts


def _residual(j: Judgement, index: int) -> Tensor:
    if j.draft_row is None:
        raise ValueError("the rejection coupling needs the drafter's row where it rejects")
    p = j.rows[index].to(torch.float64).exp()
    q = j.draft_row(index).to(p.device, torch.float64).exp()
    residual = (p - q).clamp_(min=0)
    # Rows that differ by rounding alone may leave nothing; p is what they both mean.
    return residual if float(residual.sum()) > 0 else p
