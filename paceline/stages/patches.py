"""Frames as tokens: a frame of 8-bit pixels is cut into square patches, row by row.

Shape suffixes: H, W height and width in pixels, N tokens, E values of one token (patch * patch * 3).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["decode", "patchify", "unpatchify"]

PATCH = 4  # pixels along a side of a patch


def patchify(frames: Tensor, patch: int = PATCH) -> Tensor:
    """Tokens `[..., N, E]` in [-1, 1] of 8-bit frames `[..., H, W, 3]`.

    Raises `ValueError` where a side is not a multiple of the patch.
    """
    height, width = frames.shape[-3], frames.shape[-2]
    if height % patch or width % patch:
        raise ValueError(f"frame of {height} x {width} pixels can't be cut into patches of {patch} x {patch}")
    x = frames.to(torch.float32) / 127.5 - 1.0
    lead = x.shape[:-3]
    x = x.reshape(*lead, height // patch, patch, width // patch, patch, 3).transpose(-4, -3)
    return x.reshape(*lead, (height // patch) * (width // patch), patch * patch * 3)


def unpatchify(tokens: Tensor, grid_y: int = 8, patch: int = PATCH) -> Tensor:
    """Pixels `[..., H, W, 3]` as floats in the range of the tokens `[..., N, E]`; `grid_y` is the rows of tokens."""
    lead, grid_x = tokens.shape[:-2], tokens.shape[-2] // grid_y
    x = tokens.reshape(*lead, grid_y, grid_x, patch, patch, 3).transpose(-4, -3)
    return x.reshape(*lead, grid_y * patch, grid_x * patch, 3)


def decode(x_NE: Tensor, grid_y: int = 8, patch: int = PATCH) -> Tensor:
    """Tokens `[..., N, E]` to 8-bit frames `[..., H, W, 3]`: clamped to [-1, 1] and rounded."""
    pixels = (unpatchify(x_NE, grid_y, patch).clamp(-1.0, 1.0) + 1.0) * 127.5
    return pixels.round().to(torch.uint8)
