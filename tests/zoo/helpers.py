"""A small network with weights that do something, for tests of the arithmetic."""

from __future__ import annotations

import torch

from paceline.stages.dit.config import DiTConfig
from paceline.stages.dit.network import DiT


def small_model(layers: int = 2, heads: int = 2, seed: int = 0) -> DiT:
    """A network of 32 values per head whose every weight is random (a fresh one answers 0 to everything)."""
    model = DiT(DiTConfig(width=32 * heads, layers=layers, heads=heads))
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15, generator=draw)
    return model.requires_grad_(False)
