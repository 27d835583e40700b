"""Test-time training (Sun et al. 2024, arXiv 2407.04620) as a memory: the state is the weights of a small model that
learns to map keys to values, by gradient descent with a mini-batch at a time.

The loss of a token with key k, value v and learning rate r is r |f(k) - v|^2 / 2, and its gradient is taken at the
weights with which the token's mini-batch began. The two models of the paper:

    TTT-Linear:  f(k) = k W,                     W [K, V]
    TTT-MLP:     f(k) = gelu(k W1 + b1) W2,      W1 [K, M], b1 [M], W2 [M, V]

gelu is the tanh form, as in the authors' code. Their residual and layer norm around f are left out: they need keys and
values of one size, and would make a memory that holds nothing read as something. Without them TTT-Linear is linear in
its state, and with mini-batches of one token it is the delta rule.

`*_write` computes a mini-batch in one go; `*_write_by_token`, its definition, adds the tokens' gradients one by one.
`causal_ttt.py` has TTT-Linear with layer norm for language models, whose tokens read what those before them wrote.

Shape suffixes: ... any leading dimensions (sessions, heads), N tokens, K key size, V value size, M hidden size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import gelu

__all__ = [
    "MLPWeights",
    "ttt_linear_write",
    "ttt_linear_write_by_token",
    "ttt_mlp_read",
    "ttt_mlp_write",
    "ttt_mlp_write_by_token",
]

MLPWeights = tuple[Tensor, Tensor, Tensor]
"""W1 `[..., K, M]`, b1 `[..., 1, M]` and W2 `[..., M, V]`."""


def ttt_linear_write(weight_KV: Tensor, k_NK: Tensor, v_NV: Tensor, rate_N: Tensor, batch: int) -> Tensor:
    """The weights `[..., K, V]` after tokens with keys `[..., N, K]`, values `[..., N, V]` and learning rates
    `[..., N]`, in mini-batches of `batch` tokens. The weights that are given stay as they are."""
    for start in range(0, k_NK.shape[-2], batch):
        part = slice(start, start + batch)
        k = k_NK[..., part, :]
        wrong = rate_N[..., part, None] * (v_NV[..., part, :] - k @ weight_KV)
        weight_KV = weight_KV + k.mT @ wrong
    return weight_KV


def ttt_linear_write_by_token(weight_KV: Tensor, k_NK: Tensor, v_NV: Tensor, rate_N: Tensor, batch: int) -> Tensor:
    """As `ttt_linear_write`, one token after another."""
    begun = weight_KV
    for token in range(k_NK.shape[-2]):
        if token % batch == 0:
            begun = weight_KV
        k, v = k_NK[..., token, None, :], v_NV[..., token, None, :]
        weight_KV = weight_KV - rate_N[..., token, None, None] * (k.mT @ (k @ begun - v))
    return weight_KV


def ttt_mlp_read(weights: MLPWeights, q_NK: Tensor) -> Tensor:
    """f of queries `[..., N, K]`: `[..., N, V]`."""
    first, bias, second = weights
    return gelu(q_NK @ first + bias, approximate="tanh") @ second


def ttt_mlp_write(weights: MLPWeights, k_NK: Tensor, v_NV: Tensor, rate_N: Tensor, batch: int) -> MLPWeights:
    """As `ttt_linear_write`, for an MLP."""
    first, bias, second = weights
    for start in range(0, k_NK.shape[-2], batch):
        part = slice(start, start + batch)
        k = k_NK[..., part, :]
        by_first, by_bias, by_second = _gradients((first, bias, second), k, v_NV[..., part, :], rate_N[..., part])
        first, bias, second = first - by_first, bias - by_bias, second - by_second
    return first, bias, second


def ttt_mlp_write_by_token(weights: MLPWeights, k_NK: Tensor, v_NV: Tensor, rate_N: Tensor, batch: int) -> MLPWeights:
    """As `ttt_mlp_write`, one token after another."""
    begun = weights
    first, bias, second = weights
    for token in range(k_NK.shape[-2]):
        if token % batch == 0:
            begun = first, bias, second
        one = slice(token, token + 1)
        by_first, by_bias, by_second = _gradients(begun, k_NK[..., one, :], v_NV[..., one, :], rate_N[..., one])
        first, bias, second = first - by_first, bias - by_bias, second - by_second
    return first, bias, second


def _gradients(weights: MLPWeights, k: Tensor, v: Tensor, rate: Tensor) -> MLPWeights:
    """Of the sum of the tokens' losses, by the weights."""
    first, bias, second = weights
    inner = k @ first + bias
    hidden = gelu(inner, approximate="tanh")
    wrong = rate[..., None] * (hidden @ second - v)
    by_inner = (wrong @ second.mT) * _gelu_slope(inner)
    return k.mT @ by_inner, by_inner.sum(-2, keepdim=True), hidden.mT @ wrong


def _gelu_slope(x: Tensor) -> Tensor:
    """The derivative of gelu in its tanh form, x (1 + tanh(c (x + 0.044715 x^3))) / 2 with c = sqrt(2 / pi)."""
    scale = math.sqrt(2 / math.pi)
    bend = torch.tanh(scale * (x + 0.044715 * x.pow(3)))
    return 0.5 * (1 + bend) + 0.5 * x * (1 - bend.square()) * scale * (1 + 3 * 0.044715 * x.square())
