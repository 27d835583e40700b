"""How often a target accepts a drafter's token, computed exactly from both their probabilities.

`joint` gives, for every token x, the probability that x is drafted and accepted, p being the target's and q the
drafter's probabilities at the temperature:

- `rejection`: min(p(x), q(x)), whose sum 1 − TV no coupling exceeds (Leviathan et al. 2211.17192);
- `gumbel`: both take the argmax under the same Gumbel noise. With exponential races that is 1 / Σ_y max(p(y)/p(x),
  q(y)/q(x)) (Daliri, Musco, Suresh 2408.07978).

At temperature 0 either one asks whether the likeliest tokens are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from zoo.code.sampling import continued

__all__ = ["COUPLINGS", "Acceptance", "Coupling", "joint", "on_continuations", "on_text"]

Coupling = Literal["rejection", "gumbel"]
COUPLINGS: tuple[Coupling, ...] = ("rejection", "gumbel")


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Mean over `positions`; `by_position[j]` is that of place j of a window, the places before it accepted (empty
    where the text was not the target's own, since then nothing is known about windows)."""

    positions: int
    mean: float
    by_position: tuple[float, ...] = ()


def joint(target: Tensor, draft: Tensor, temperature: float, coupling: Coupling) -> Tensor:
    """Probability `[N, V]` that a token is drafted and accepted, of logits `[N, V]`, in float64.

    Raises `ValueError` for a negative temperature.
    """
    if temperature < 0:
        raise ValueError(f"a temperature of {temperature} has no meaning; take 0 for the likeliest token, or more")
    if temperature == 0:
        p, q = (torch.nn.functional.one_hot(x.argmax(-1), x.shape[-1]).double() for x in (target, draft))
        return p * q
    log_p, log_q = (torch.log_softmax(x.double() / temperature, dim=-1) for x in (target, draft))
    if coupling == "rejection":
        return torch.minimum(log_p, log_q).exp()
    # Tokens y with p(y)/q(y) above that of x lose to x by p, the others by q; sorting splits all pairs at once.
    order = (log_p - log_q).argsort(dim=-1, descending=True)
    p, q = log_p.exp().gather(-1, order), log_q.exp().gather(-1, order)
    above, below = p.cumsum(-1), q.flip(-1).cumsum(-1).flip(-1) - q
    tiny = torch.finfo(p.dtype).tiny
    both = 1 / (above / p.clamp_min(tiny) + below / q.clamp_min(tiny))
    return torch.empty_like(both).scatter_(-1, order, both)


@torch.inference_mode()
def _logits(model: LlamaForCausalLM, tokens: Tensor, first: int) -> Tensor:
    """Logits `[B * R, V]` that predict the tokens from `first` on of rows `[B, T]`, R = T − first."""
    logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits[:, first - 1 : -1].flatten(0, 1).float()


def on_text(
    target: LlamaForCausalLM, draft: LlamaForCausalLM, rows: Tensor, temperature: float, first: int = 64
) -> dict[Coupling, Acceptance]:
    """Acceptance at every position of given text `[B, T]` from `first` on, whatever token the text has there."""
    sums = dict.fromkeys(COUPLINGS, 0.0)
    count = 0
    for row in torch.split(rows, 4):
        p, q = _logits(target, row, first), _logits(draft, row, first)
        count += len(p)
        for coupling in COUPLINGS:
            sums[coupling] += float(joint(p, q, temperature, coupling).sum())
    return {coupling: Acceptance(count, total / count) for coupling, total in sums.items()}


def on_continuations(
    target: LlamaForCausalLM,
    draft: LlamaForCausalLM,
    prompts: Tensor,
    count: int,
    temperature: float,
    window: int = 8,
    seed: int = 0,
) -> dict[Coupling, Acceptance]:
    """Acceptance while the target continues prompts `[B, P]` by `count` tokens at that temperature.

    The text is the target's own, so the chance that j drafts in a row are accepted from some place on is the mean of
    the product of joint(x) / p(x) over the j tokens x that stand there; windows may begin anywhere.
    """
    if not 0 < window <= count:
        raise ValueError(f"windows of {window} tokens do not fit continuations of {count}; make the window smaller")
    length = prompts.shape[1]
    means = {coupling: list[Tensor]() for coupling in COUPLINGS}
    agreed = {coupling: list[Tensor]() for coupling in COUPLINGS}
    text = continued(target, prompts, count, temperature, seed)
    for rows in torch.split(text, 4):
        p, q = _logits(target, rows, length), _logits(draft, rows, length)
        token = rows[:, length:].reshape(-1, 1)
        share = joint(p, p, temperature, "rejection").gather(-1, token)[:, 0]  # p itself
        for coupling in COUPLINGS:
            both = joint(p, q, temperature, coupling)
            means[coupling].append(both.sum(-1))
            # A token of probability 0 can't have been written but for rounding; it counts as not agreed.
            ratio = both.gather(-1, token)[:, 0] / share.clamp_min(1e-300)
            agreed[coupling].append(ratio.clamp(0, 1).view(len(rows), count))
    out: dict[Coupling, Acceptance] = {}
    for coupling in COUPLINGS:
        mean = torch.cat(means[coupling])
        products = torch.cat(agreed[coupling]).unfold(1, window, 1).cumprod(-1).flatten(0, 1).mean(0)
        survival = [1.0, *products.tolist()]
        places = tuple(b / a if a > 0 else 0.0 for a, b in pairwise(survival))
        out[coupling] = Acceptance(len(mean), float(mean.mean()), places)
    return out
