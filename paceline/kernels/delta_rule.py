"""The delta rule: a state that maps keys to values, corrected by what it gets wrong.

For one token with key k, value v, strength beta and decay a in (0, 1]:

    S <- a S,      S <- S + beta k (v - S^T k)^T.

With a = 1 it is DeltaNet (Schlag et al. 2021, arXiv 2102.11174), with a decay the gated delta rule (Yang et al. 2024,
arXiv 2412.06464). Tokens of one call are written one after another. `delta_write` computes that in one go, by the WY
form: with G the cumulated log decay, L_ij = exp(G_i - G_j) for j <= i and A the strictly lower part of
diag(beta) (K K^T * L),

    U = (I + A)^-1 diag(beta) (V - diag(exp G) K S),    S' = exp(G_n) S + sum_j exp(G_n - G_j) k_j u_j^T.

Linear attention (Katharopoulos et al. 2020, arXiv 2006.16236, without the normaliser) adds k and v as they are, U =
diag(beta) V.

Shape suffixes: ... any leading dimensions (sessions, heads), N tokens, K key size, V value size.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["delta_read", "delta_write", "delta_write_by_token", "linear_write", "linear_write_by_token"]


def delta_read(state_KV: Tensor, q_NK: Tensor) -> Tensor:
    """What a state `[..., K, V]` holds for queries `[..., N, K]`: `[..., N, V]`. All queries read the same state."""
    return q_NK @ state_KV


def delta_write_by_token(
    state_KV: Tensor, k_NK: Tensor, v_NV: Tensor, beta_N: Tensor, log_decay_N: Tensor | None = None
) -> Tensor:
    """The state after tokens were written one by one: the definition of `delta_write`."""
    for token in range(k_NK.shape[-2]):
        k, v = k_NK[..., token, :, None], v_NV[..., token, None, :]
        if log_decay_N is not None:
            state_KV = state_KV * log_decay_N[..., token, None, None].exp()
        wrong = v - k.mT @ state_KV
        state_KV = state_KV + beta_N[..., token, None, None] * (k @ wrong)
    return state_KV


def delta_write(
    state_KV: Tensor, k_NK: Tensor, v_NV: Tensor, beta_N: Tensor, log_decay_N: Tensor | None = None
) -> Tensor:
    """The state `[..., K, V]` after tokens with keys `[..., N, K]`, values `[..., N, V]`, strengths `[..., N]` and log
    decays `[..., N]` (none: 0). The state that is given stays as it is."""
    overlap = k_NK @ k_NK.mT
    held = k_NK @ state_KV
    if log_decay_N is not None:
        total = log_decay_N.cumsum(-1)
        overlap = overlap * (total[..., :, None] - total[..., None, :]).tril().exp()
        held = held * total[..., None].exp()
    system = (beta_N[..., None] * overlap).tril(-1)
    right = beta_N[..., None] * (v_NV - held)
    # The diagonal counts as ones.
    update: Tensor = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    return _add(state_KV, k_NK, update, log_decay_N)


def linear_write_by_token(
    state_KV: Tensor, k_NK: Tensor, v_NV: Tensor, beta_N: Tensor, log_decay_N: Tensor | None = None
) -> Tensor:
    """The state after tokens were added one by one: the definition of `linear_write`."""
    for token in range(k_NK.shape[-2]):
        if log_decay_N is not None:
            state_KV = state_KV * log_decay_N[..., token, None, None].exp()
        state_KV = state_KV + beta_N[..., token, None, None] * (k_NK[..., token, :, None] @ v_NV[..., token, None, :])
    return state_KV


def linear_write(
    state_KV: Tensor, k_NK: Tensor, v_NV: Tensor, beta_N: Tensor, log_decay_N: Tensor | None = None
) -> Tensor:
    """As `delta_write`, for linear attention."""
    return _add(state_KV, k_NK, beta_N[..., None] * v_NV, log_decay_N)


def _add(state_KV: Tensor, k_NK: Tensor, update_NV: Tensor, log_decay_N: Tensor | None) -> Tensor:
    """exp(G_n) S + sum_j exp(G_n - G_j) k_j u_j^T."""
    if log_decay_N is None:
        return state_KV + k_NK.mT @ update_NV
    total = log_decay_N.cumsum(-1)
    left = (total[..., -1:] - total).exp()[..., None]
    faded = state_KV * total[..., -1, None, None].exp()
    return faded + k_NK.mT @ (left * update_NV)
