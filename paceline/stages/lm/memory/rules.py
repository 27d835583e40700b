"""The rules of memory layers: how a state is written and read, and the parameters that this takes.

Shape suffixes: ... leading dimensions (batch), H heads, N tokens, K key size, V value size.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from paceline.kernels.causal_delta import causal_delta, causal_delta_by_token
from paceline.kernels.causal_ttt import InnerNorm, causal_ttt
from paceline.stages.lm.memory.config import MemoryLMConfig
from paceline.stages.lm.recurrence import State

__all__ = ["MatrixRule", "Rule", "TTTLinearRule", "make_rule"]


class Rule(Protocol):
    """What a mixer asks of its rule; all are `nn.Module`s."""

    gates: int
    """Numbers by which a token steers a head."""

    def empty(self, lead: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> State:
        """The state of sequences without tokens; `lead` are leading dimensions."""
        ...

    def scan(
        self, state: State, q_HNK: Tensor, k_HNK: Tensor, v_HNV: Tensor, gates_NGH: Tensor
    ) -> tuple[Tensor, State]:
        """What tokens read, `[..., H, N, V]`, each after it was written, and the state after them. Queries and keys
        have length 1."""
        ...


class MatrixRule(nn.Module):
    """The gated delta rule, the delta rule (no decay), and linear attention with decay (no correction).

    As in Transformers' `qwen3_next`: beta = sigmoid(b), log decay = -exp(A_log) softplus(a + dt_bias).
    """

    def __init__(self, config: MemoryLMConfig, corrects: bool, fades: bool) -> None:
        super().__init__()
        self._shape = config.memory_heads, config.memory_key_size, config.memory_value_size
        self._corrects, self._fades = corrects, fades
        self.gates = 2 if fades else 1
        if fades:
            # Between 1/1000 and 1/100 is forgotten with a token at first.
            rates = torch.logspace(-3, -2, config.memory_heads)
            self.dt_bias = nn.Parameter(rates.expm1().log())
            self.A_log = nn.Parameter(torch.zeros(config.memory_heads))

    def empty(self, lead: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> State:
        """See `Rule`; the state is one matrix `[..., H, K, V]`."""
        return (torch.zeros(*lead, *self._shape, dtype=dtype, device=device),)

    def scan(
        self, state: State, q_HNK: Tensor, k_HNK: Tensor, v_HNV: Tensor, gates_NGH: Tensor
    ) -> tuple[Tensor, State]:
        """See `Rule`."""
        gates = gates_NGH.movedim(-3, -1)
        beta, decay = gates[..., 0, :, :].sigmoid(), None
        if self._fades:
            dtype = state[0].dtype
            bias, rate = self.dt_bias.to(dtype)[:, None], self.A_log.to(dtype).exp()[:, None]
            decay = -rate * softplus(gates[..., 1, :, :] + bias)
        scan = causal_delta_by_token if k_HNK.shape[-2] == 1 else causal_delta
        # The scale of a query is that of attention.
        out, new = scan(state[0], q_HNK * q_HNK.shape[-1] ** -0.5, k_HNK, v_HNV, beta, decay, self._corrects)
        return out, (new,)


class TTTLinearRule(nn.Module):
    """TTT-Linear; see `kernels/causal_ttt.py`. Learned are the weights that a sequence begins with, the inner norm and
    the step sizes; a token's learning rate is a sigmoid of its gate."""

    gates = 1

    def __init__(self, config: MemoryLMConfig) -> None:
        super().__init__()
        heads, size, batch = config.memory_heads, config.memory_key_size, config.ttt_batch
        self.weight = nn.Parameter(0.02 * torch.randn(heads, size, size))
        self.bias = nn.Parameter(torch.zeros(heads, 1, size))
        self.norm_weight = nn.Parameter(torch.ones(heads, 1, size))
        self.norm_bias = nn.Parameter(torch.zeros(heads, 1, size))
        # The mean over a mini-batch so far, as in the authors' code, is steps of 1 / (i + 1); here all begin alike.
        self.log_steps = nn.Parameter(torch.full((batch,), -0.5 * math.log(batch)))

    def empty(self, lead: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> State:
        """See `Rule`; the state is a `TTTState`."""
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        sums = [torch.zeros(*lead, *part.shape, dtype=dtype, device=device) for part in (weight, bias)]
        return (*(part.expand(*lead, *part.shape) for part in (weight, bias)), *sums, torch.tensor(0))

    def scan(
        self, state: State, q_HNK: Tensor, k_HNK: Tensor, v_HNV: Tensor, gates_NGH: Tensor
    ) -> tuple[Tensor, State]:
        """See `Rule`."""
        dtype = state[0].dtype
        rate = gates_NGH.movedim(-3, -1)[..., 0, :, :].sigmoid()
        norm = InnerNorm(self.norm_weight.to(dtype), self.norm_bias.to(dtype))
        weight, bias, weight_sum, bias_sum, begun = state
        return causal_ttt(
            (weight, bias, weight_sum, bias_sum, begun), q_HNK, k_HNK, v_HNV, rate, self.log_steps.to(dtype).exp(), norm
        )


def make_rule(config: MemoryLMConfig, kind: str) -> MatrixRule | TTTLinearRule:
    """The rule of a kind of layer."""
    if kind == "ttt_linear":
        return TTTLinearRule(config)
    return MatrixRule(config, corrects=kind != "linear", fades=kind != "delta")
