"""Frames as tokens, and back: a frame of 8-bit pixels is cut into square patches, row by row.

Shape suffixes: H, W height and width in pixels, N tokens, E values of one token (patch * patch * 3).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["PATCH", "PatchDecoder", "cut", "decode", "ground_noise", "patchify", "unpatchify"]


PATCH = 4  # pixels along a side of a patch


def patchify(frames: Tensor, patch: int = PATCH) -> Tensor:
    """Tokens `[..., N, E]` in [-1, 1] of 8-bit frames `[..., H, W, 3]`.

    Raises `ValueError` where a side is not a multiple of the patch.
    """
    height, width = frames.shape[-3], frames.shape[-2]
    if height % patch or width % patch:
        raise ValueError(f"frame of {height} x {width} pixels can't be cut into patches of {patch} x {patch}")
    return cut(frames.to(torch.float32) / 127.5 - 1.0, patch)


def cut(pixels: Tensor, patch: int = PATCH) -> Tensor:
    """Tokens `[..., N, E]` of pixels `[..., H, W, 3]`, their values as they are."""
    lead, (height, width) = pixels.shape[:-3], pixels.shape[-3:-1]
    x = pixels.reshape(*lead, height // patch, patch, width // patch, patch, 3).transpose(-4, -3)
    return x.reshape(*lead, (height // patch) * (width // patch), patch * patch * 3)


def ground_noise(field: Tensor, pose_y: int, pose_x: int, grid_y: int = 8, grid_x: int = 8) -> Tensor:
    """The noise `[N, E]` that a view of `grid_y * grid_x` patches at a pose starts from, cut out of a `field
    [H, W, 3]` that lies on the ground, a torus. Poses count half patches.

    Frames that show the same ground start from the same noise there, so steps in flight that have not seen each other's
    choice yet tend to make the same one (noise warping: Chang et al., "How I Warped Your Noise", ICLR 2024).
    """
    step = PATCH // 2
    height, width = field.shape[:2]
    rows = (step * pose_y + torch.arange(PATCH * grid_y, device=field.device)) % height
    columns = (step * pose_x + torch.arange(PATCH * grid_x, device=field.device)) % width
    return cut(field[rows][:, columns])


def unpatchify(tokens: Tensor, grid_y: int = 8, patch: int = PATCH) -> Tensor:
    """Pixels `[..., H, W, 3]` as floats in the range of the tokens `[..., N, E]`; `grid_y` is the rows of tokens."""
    lead, grid_x = tokens.shape[:-2], tokens.shape[-2] // grid_y
    x = tokens.reshape(*lead, grid_y, grid_x, patch, patch, 3).transpose(-4, -3)
    return x.reshape(*lead, grid_y * patch, grid_x * patch, 3)


def decode(x_NE: Tensor, grid_y: int = 8, patch: int = PATCH) -> Tensor:
    """Tokens `[..., N, E]` to 8-bit frames `[..., H, W, 3]`: clamped to [-1, 1] and rounded."""
    pixels = (unpatchify(x_NE, grid_y, patch).clamp(-1.0, 1.0) + 1.0) * 127.5
    return pixels.round().to(torch.uint8)


class PatchDecoder:
    """The model works in pixels, so this is patch decoding, without state. See `FrameDecoder`."""

    def __init__(self, grid_y: int) -> None:
        """`grid_y` is the rows of tokens."""
        self._grid_y = grid_y

    def open(self, session: int) -> None:
        """Nothing to keep."""

    def decode(self, session: int, frame: int, latent: Tensor) -> Tensor:
        """One picture `[1, H, W, 3]`."""
        return decode(latent, self._grid_y).cpu()[None]

    def close(self, session: int) -> None:
        """Nothing to free."""
