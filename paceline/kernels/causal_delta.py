"""The delta rule and linear attention in a causal model: every token is written, and then reads what is held.

For one token with query q, key k, value v, strength beta and log decay g <= 0:

    S <- exp(g) S,      u = beta (v - S^T k),      S <- S + k u^T,      o = S^T q.

Without g it is DeltaNet (Schlag et al. 2021, arXiv 2102.11174), with it the gated delta rule (Yang et al. 2024, arXiv
2412.06464). Linear attention with decay writes u = beta v. Over a chunk of tokens, with G the cumulated log decay,
L_ij = exp(G_i - G_j) for j <= i and A the strictly lower part of diag(beta) (K K^T * L),

    U = (I + A)^-1 diag(beta) (V - diag(exp G) K S),      O = diag(exp G) Q S + (Q K^T * L) U,
    S' = exp(G_n) S + sum_j exp(G_n - G_j) k_j u_j^T

(the WY form; A is left out for linear attention, and so is what S held). `delta_rule.py` has the rule of a context
memory, whose tokens all read the state before them.

Shape suffixes: ... any leading dimensions (sessions, heads), N tokens, K key size, V value size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.kernels.triton_kernels import triton_kernels

__all__ = ["CHUNK", "causal_delta", "causal_delta_by_token", "causal_delta_reference"]

CHUNK = 64
"""Tokens that are computed in one go: work within a chunk grows with its square."""


def causal_delta_by_token(
    state_KV: Tensor,
    q_NK: Tensor,
    k_NK: Tensor,
    v_NV: Tensor,
    beta_N: Tensor,
    log_decay_N: Tensor | None = None,
    corrects: bool = True,
) -> tuple[Tensor, Tensor]:
    """The definition of `causal_delta`: one token after another. Its bits don't depend on how tokens are split."""
    outs = []
    for token in range(k_NK.shape[-2]):
        one = slice(token, token + 1)
        q, k, v, beta = q_NK[..., one, :], k_NK[..., one, :], v_NV[..., one, :], beta_N[..., one, None]
        if log_decay_N is not None:
            state_KV = state_KV * log_decay_N[..., one, None].exp()
        update = beta * (v - k @ state_KV) if corrects else beta * v
        state_KV = state_KV + k.mT * update
        outs.append(q @ state_KV)
    return torch.cat(outs, dim=-2), state_KV


def causal_delta(
    state_KV: Tensor,
    q_NK: Tensor,
    k_NK: Tensor,
    v_NV: Tensor,
    beta_N: Tensor,
    log_decay_N: Tensor | None = None,
    corrects: bool = True,
) -> tuple[Tensor, Tensor]:
    """Write and read tokens, each after those before it.

    Takes the state `[..., K, V]`, queries and keys `[..., N, K]`, values `[..., N, V]`, strengths `[..., N]` and log
    decays `[..., N]` (None: no decay); N >= 1. `corrects` False is linear attention. Returns what tokens read
    `[..., N, V]` and the state after them; the state that is given stays as it is. On CUDA it is
    one Triton kernel where Triton is installed, tensors are float32, and no gradient is asked for.
    """
    triton = triton_kernels("causal_delta") if k_NK.device.type == "cuda" else None
    if triton is not None:
        given = [state_KV, q_NK, k_NK, v_NV, beta_N, *([] if log_decay_N is None else [log_decay_N])]
        if triton.suits(*given):
            found: tuple[Tensor, Tensor] = triton.causal_delta(
                state_KV, q_NK, k_NK, v_NV, beta_N, log_decay_N, corrects
            )
            return found
    return causal_delta_reference(state_KV, q_NK, k_NK, v_NV, beta_N, log_decay_N, corrects)


def causal_delta_reference(
    state_KV: Tensor,
    q_NK: Tensor,
    k_NK: Tensor,
    v_NV: Tensor,
    beta_N: Tensor,
    log_decay_N: Tensor | None = None,
    corrects: bool = True,
) -> tuple[Tensor, Tensor]:
    """As `causal_delta`, in torch on any device, in chunks of `CHUNK` tokens."""
    outs = []
    for start in range(0, k_NK.shape[-2], CHUNK):
        part = slice(start, start + CHUNK)
        out, state_KV = _chunk(
            state_KV, q_NK[..., part, :], k_NK[..., part, :], v_NV[..., part, :], beta_N[..., part],
            None if log_decay_N is None else log_decay_N[..., part], corrects,
        )  # fmt: skip
        outs.append(out)
    return (outs[0] if len(outs) == 1 else torch.cat(outs, dim=-2)), state_KV


def _chunk(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, corrects: bool
) -> tuple[Tensor, Tensor]:
    looks = (q @ k.mT).tril()
    left, kept = k, state
    within = None
    if log_decay is not None:
        total = log_decay.cumsum(-1)
        # Positions behind are left out before exp, which would overflow there.
        distance = total[..., :, None] - total[..., None, :]
        within = distance.masked_fill(torch.ones_like(distance, dtype=torch.bool).triu(1), -torch.inf).exp()
        looks = looks * within
        fades = total.exp()[..., None]
        q = q * fades
        left = k * (total[..., -1:] - total).exp()[..., None]
        kept = state * fades[..., -1:, :]
    update = beta[..., None] * v
    if corrects:
        held = (k if log_decay is None else k * fades) @ state
        overlap = k @ k.mT if within is None else (k @ k.mT) * within
        # The diagonal counts as ones.
        update = torch.linalg.solve_triangular(
            (beta[..., None] * overlap).tril(-1), update - beta[..., None] * held, upper=False, unitriangular=True
        )
    return q @ state + looks @ update, kept + left.mT @ update
