"""TTT-Linear in a causal model (Sun et al. 2024, arXiv 2407.04620): the state is a linear model that learns from every
token, by a gradient step on how well it maps the token's key to its value.

The model is f(x; W, b) = x + LN(x W + b), with a layer norm LN whose weight and bias are fixed. The loss of a token is
|f(k) - v|^2 / 2, so that the layer norm has v - k as its target; its gradient is taken at the weights with which the
mini-batch began. With G_i the sum over tokens j <= i of the mini-batch of lr_j k_j^T g_j (for b: lr_j g_j), g_j the
gradient by k_j W + b, token i reads with

    W_i = W - s_i G_i,      o_i = f(q_i; W_i, b_i),

s_i the step size of the i-th token of a mini-batch; the next mini-batch begins with the weights of the last token.

Tokens of a mini-batch are computed in one go (the dual form), wherever in it a call begins and ends: the sums G are
part of the state.

Shape suffixes: ... any leading dimensions (sessions), H heads, N tokens, K key size, which is the value size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["InnerNorm", "TTTState", "causal_ttt"]

_EPS = 1e-6

TTTState = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Weights `[..., H, K, K]`, bias `[..., H, 1, K]`, the sums for both, and an int64 scalar: tokens of the mini-batch."""


@dataclass(frozen=True, slots=True)
class InnerNorm:
    """The layer norm of the inner model: weight and bias `[H, 1, K]`."""

    weight: Tensor
    bias: Tensor


def causal_ttt(
    state: TTTState, q_NK: Tensor, k_NK: Tensor, v_NK: Tensor, rate_N: Tensor, steps_B: Tensor, norm: InnerNorm
) -> tuple[Tensor, TTTState]:
    """Learn from tokens and read, each after those before it.

    Takes queries, keys and values `[..., H, N, K]`, learning rates `[..., H, N]`, and the step sizes `[B]` of a
    mini-batch of B tokens. Returns what tokens read `[..., H, N, K]` and the state after them; the state that is given
    stays as it is.
    """
    outs, start, count = [], 0, k_NK.shape[-2]
    size, begun = steps_B.shape[0], int(state[4])
    while start < count:
        part = slice(start, min(count, start + size - begun))
        out, state = _piece(
            state, q_NK[..., part, :], k_NK[..., part, :], v_NK[..., part, :], rate_N[..., part], steps_B, begun, norm
        )
        outs.append(out)
        begun = (begun + part.stop - part.start) % size
        start = part.stop
    return (outs[0] if len(outs) == 1 else torch.cat(outs, dim=-2)), state


def _piece(
    state: TTTState, q: Tensor, k: Tensor, v: Tensor, rate: Tensor, steps: Tensor, begun: int, norm: InnerNorm
) -> tuple[Tensor, TTTState]:
    """Tokens of one mini-batch, of which `begun` were before."""
    weight, bias, weight_sum, bias_sum, _ = state
    end = begun + k.shape[-2]
    slope = rate[..., None] * _gradient(k @ weight + bias, v - k, norm)
    looks = (q @ k.mT).tril()
    moved = q @ weight_sum + looks @ slope + bias_sum + slope.cumsum(-2)
    read = q + _normed(q @ weight + bias - steps[begun:end, None] * moved, norm)
    weight_sum = weight_sum + k.mT @ slope
    bias_sum = bias_sum + slope.sum(-2, keepdim=True)
    if end == steps.shape[0]:
        weight, bias = weight - steps[-1] * weight_sum, bias - steps[-1] * bias_sum
        weight_sum, bias_sum, end = torch.zeros_like(weight), torch.zeros_like(bias), 0
    return read, (weight, bias, weight_sum, bias_sum, torch.tensor(end))


def _standard(x: Tensor) -> tuple[Tensor, Tensor]:
    """Without mean and with variance 1, and what it was divided by."""
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + _EPS).sqrt()
    return centred / scale, scale


def _normed(x: Tensor, norm: InnerNorm) -> Tensor:
    return norm.weight * _standard(x)[0] + norm.bias


def _gradient(x: Tensor, target: Tensor, norm: InnerNorm) -> Tensor:
    """Of |LN(x) - target|^2 / 2 by x."""
    standard, scale = _standard(x)
    by_standard = (norm.weight * standard + norm.bias - target) * norm.weight
    mean = by_standard.mean(-1, keepdim=True)
    along = (by_standard * standard).mean(-1, keepdim=True)
    return (by_standard - mean - standard * along) / scale
