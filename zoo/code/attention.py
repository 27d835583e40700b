"""Causal attention for training on a CPU: blocks of queries, each against the keys up to its end.

A block needs one plain matrix product and one softmax, which a CPU does about twice as fast in bfloat16 as PyTorch's
fused kernel does heads of 32 or 64 forward and backward; half of the square is never computed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

__all__ = ["IMPLEMENTATION", "causal_attention", "register"]

IMPLEMENTATION = "zoo_causal"
BLOCK = 128


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, block: int = BLOCK) -> Tensor:
    """Attention of `[B, H, T, D]` queries over `[B, K, T, D]` keys and values, H a multiple of K; `[B, H, T, D]`."""
    batch, heads, length, width = query.shape
    shared = heads // key.shape[1]
    future = torch.ones(block, block, dtype=torch.bool, device=query.device).triu(1)
    out: list[Tensor] = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        rows = stop - start
        # Query heads that share a key head stand below one another, as rows of one product.
        q = query[:, :, start:stop].reshape(batch, -1, shared * rows, width)
        score = (q @ key[:, :, :stop].transpose(-1, -2)).float() * scale
        score = score.view(batch, -1, shared, rows, stop)
        hidden = nn.functional.pad(future[:rows, :rows], (start, 0))
        weight = score.masked_fill(hidden, -math.inf).softmax(-1).to(value.dtype)
        mixed = weight.view(batch, -1, shared * rows, stop) @ value[:, :, :stop]
        out.append(mixed.view(batch, heads, rows, width))
    return torch.cat(out, dim=2)


def _hook(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: object
) -> tuple[Tensor, None]:
    """What Transformers calls; it wants `[B, T, H, D]` back."""
    return causal_attention(query, key, value, scaling).transpose(1, 2).contiguous(), None


def register() -> str:
    """Make the implementation known to Transformers and return its name."""
    AttentionInterface.register(IMPLEMENTATION, _hook)
    AttentionMaskInterface.register(IMPLEMENTATION, lambda *_, **__: None)
    return IMPLEMENTATION
