"""A memory layer in the place of attention: projections, a short convolution, a rule, a gated norm.

It is built as the gated delta net of Transformers' `qwen3_next` (Yang et al. 2024, arXiv 2412.06464), with a rule of
`rules.py` in its middle. Its state for a sequence is what the convolution still sees and the state of the rule.

Shape suffixes: B batch, M rows, C hidden size, D channels of the convolution, H heads, N tokens, K key size, V value
size; ... is B or nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from paceline.stages.lm.memory.config import MemoryLMConfig
from paceline.stages.lm.memory.rules import make_rule
from paceline.stages.lm.recurrence import State

__all__ = ["MemoryMixer"]

_LEAST = 1e-6


class MemoryMixer(nn.Module):
    """Takes the place of a Llama's `self_attn`. It is the `Recurrence` that it hands to a pass."""

    def __init__(self, config: MemoryLMConfig, layer_idx: int, kind: str) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self._heads, self._key, self._value = config.memory_heads, config.memory_key_size, config.memory_value_size
        self._eps = config.rms_norm_eps
        hidden, channels = config.hidden_size, self._heads * (2 * self._key + self._value)
        self.rule = make_rule(config, kind)
        self.in_proj = nn.Linear(hidden, channels, bias=False)
        self.gate_proj = nn.Linear(hidden, self.rule.gates * self._heads, bias=False)
        self.z_proj = nn.Linear(hidden, self._heads * self._value, bias=False)
        self.conv = nn.Parameter(torch.randn(config.memory_conv, channels) * config.memory_conv**-0.5)
        self.out_norm = nn.Parameter(torch.ones(self._value))
        self.out_proj = nn.Linear(self._heads * self._value, hidden, bias=False)

    def forward(self, hidden_states: Tensor, past_key_values: Any = None, **kwargs: Any) -> tuple[Tensor, None]:
        """Rows `[B, M, C]` to `[B, M, C]`. Within a pass, which `past_key_values` leads to, rows are of the sequences
        that the pass says; else each of the batch is a sequence from its beginning.

        Raises `NotImplementedError` for another cache.
        """
        rows = self.in_proj(hidden_states), self.gate_proj(hidden_states)
        if past_key_values is None:
            _, read = self.advance(self._empty(hidden_states.shape[:1]), rows)
        elif hasattr(past_key_values, "recur"):
            read = past_key_values.recur(self.layer_idx, (rows[0][0], rows[1][0]), self)[None]
        else:
            raise NotImplementedError(
                "caches of Transformers hold no state of memory layers; call the model with use_cache=False, or "
                "generate with `paceline generate`"
            )
        gate = self.z_proj(hidden_states)
        return self.out_proj(self._normed(read, gate).to(hidden_states.dtype)), None

    def empty(self) -> State:
        """See `Recurrence`."""
        return self._empty(())

    def advance(self, state: State, rows: tuple[Tensor, ...]) -> tuple[State, Tensor]:
        """See `Recurrence`: rows are projections `[..., N, D]` and gates `[..., N, G H]`; they read `[..., N, H V]`."""
        dtype = state[0].dtype
        mixed, gates = rows[0].to(dtype), rows[1].to(dtype)
        count, seen = mixed.shape[-2], torch.cat([state[0], mixed], dim=-2)
        conv = self.conv.to(dtype)
        summed = seen[..., :count, :] * conv[0]
        for back in range(1, conv.shape[0]):
            summed = summed + seen[..., back : back + count, :] * conv[back]
        keys, mixed = self._heads * self._key, silu(summed)
        q, k, v = (
            self._by_head(part) for part in (mixed[..., :keys], mixed[..., keys : 2 * keys], mixed[..., 2 * keys :])
        )
        gates = gates.reshape(*gates.shape[:-1], self.rule.gates, self._heads)
        read, new = self.rule.scan(tuple(state[1:]), _unit(q), _unit(k), v, gates)
        return (seen[..., count:, :], *new), read.transpose(-3, -2).flatten(-2)

    def _empty(self, lead: tuple[int, ...]) -> State:
        dtype = torch.promote_types(self.conv.dtype, torch.float32)
        device = self.conv.device
        tail = torch.zeros(*lead, self.conv.shape[0] - 1, self.conv.shape[1], dtype=dtype, device=device)
        return (tail, *self.rule.empty(tuple(lead), dtype, device))

    def _by_head(self, rows: Tensor) -> Tensor:
        """`[..., N, H X]` to `[..., H, N, X]`."""
        return rows.reshape(*rows.shape[:-1], self._heads, -1).transpose(-3, -2)

    def _normed(self, read: Tensor, gate: Tensor) -> Tensor:
        """Root mean square norm of each head's `[V]`, times silu of its gate."""
        heads = read.reshape(*read.shape[:-1], self._heads, self._value)
        scaled = heads * (heads.square().mean(-1, keepdim=True) + self._eps).rsqrt()
        return (self.out_norm * scaled).flatten(-2) * silu(gate.to(read.dtype))


def _unit(x: Tensor) -> Tensor:
    """With length 1, but for a vector that is nearly zero."""
    return x * (x.square().sum(-1, keepdim=True) + _LEAST).rsqrt()
