"""Lossy KV: blocks at 8, 4 or 2 bits a value, with a scale and an offset for each (block, head, channel or token).

Keys have a few channels that are large in all tokens, values don't; so keys have scales for each channel and values for
each token (KIVI, Liu et al., ICML 2024). Values are rounded to the nearest of 2^bits levels between the lowest and the
highest of their group, both of which are kept in float32; so a value is off by (highest - lowest) / (2^bits - 1) / 2 at
most, and a group of equal values by nothing. A function of the block alone: no neighbour changes what comes back.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

__all__ = ["Axis", "Packed", "QuantisationError", "measured_error", "pack", "packed_nbytes", "unpack"]


class Axis(StrEnum):
    """What shares a scale."""

    channel = "channel"
    """All tokens of a channel: for keys."""
    token = "token"
    """All channels of a token: for values."""


@dataclass(frozen=True, slots=True)
class Packed:
    """N blocks as codes and what turns them into numbers again."""

    codes_NGBC: Tensor
    """uint8; a byte holds 8 / bits neighbouring channels, the first in its lowest bits."""
    step_NGX: Tensor
    """float32 `[N, G, D]` for scales by channel, `[N, G, B]` by token."""
    lowest_NGX: Tensor
    """The same shape: what code 0 stands for."""
    bits: int
    axis: Axis

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return int(self.codes_NGBC.nbytes + self.step_NGX.nbytes + self.lowest_NGX.nbytes)


@dataclass(frozen=True, slots=True)
class QuantisationError:
    """How far off what comes back is from what was packed."""

    relative: float
    """Root of the sum of squared differences over that of squared values."""
    largest: float
    """Largest difference."""


@torch.no_grad()
def pack(blocks_NGBD: Tensor, bits: int, axis: Axis) -> Packed:
    """Pack blocks of any floating-point type. All tokens count: keep those that are not valid 0, or of ordinary size.

    Raises `ValueError` for other bits than 8, 4, 2, for a D that does not fill bytes, and for NaN or infinite values.
    """
    per_byte = _per_byte(bits, blocks_NGBD.shape[3])
    blocks_NGBD = blocks_NGBD.to(torch.float32)
    lowest, highest = torch.aminmax(blocks_NGBD, dim=_dim(axis), keepdim=True)
    # In double precision, as the difference of two floats may not be one.
    step = ((highest.double() - lowest.double()) / (2**bits - 1)).to(torch.float32)
    if not bool(torch.isfinite(step).all()):
        raise ValueError(f"blocks hold NaN, or values too far apart for {bits} bits; keep them as they are")
    scaled = (blocks_NGBD - lowest).div_(step.masked_fill(step == 0, 1.0))
    codes_NGBD = scaled.round_().clamp_(0, 2**bits - 1).to(torch.uint8)
    if per_byte > 1:
        shifts = torch.arange(0, 8, bits, device=codes_NGBD.device, dtype=torch.uint8)
        codes_NGBD = (codes_NGBD.view(*codes_NGBD.shape[:3], -1, per_byte) << shifts).sum(dim=4, dtype=torch.uint8)
    return Packed(codes_NGBD, step.squeeze(_dim(axis)), lowest.squeeze(_dim(axis)), bits, axis)


@torch.no_grad()
def unpack(packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
    """The blocks `[N, G, B, D]`, nearly."""
    codes = packed.codes_NGBC
    if packed.bits < 8:
        shifts = torch.arange(0, 8, packed.bits, device=codes.device, dtype=torch.uint8)
        codes = ((codes[..., None] >> shifts) & (2**packed.bits - 1)).flatten(3)
    step, lowest = (part.unsqueeze(_dim(packed.axis)) for part in (packed.step_NGX, packed.lowest_NGX))
    return (codes.to(torch.float32) * step + lowest).to(dtype)


def measured_error(blocks_NGBD: Tensor, packed: Packed) -> QuantisationError:
    """Compare blocks with what comes back of them."""
    there = blocks_NGBD.to(torch.float64)
    off = there - unpack(packed).to(torch.float64)
    size = float(there.norm())
    return QuantisationError(float(off.norm()) / size if size else 0.0, float(off.abs().max()) if len(off) else 0.0)


def packed_nbytes(heads: int, block_size: int, width: int, bits: int, axis: Axis) -> int:
    """Bytes of one packed block of keys, or of values. Raises `ValueError` as `pack` does."""
    groups = width if axis is Axis.channel else block_size
    return heads * (block_size * (width // _per_byte(bits, width)) + 8 * groups)


def _per_byte(bits: int, width: int) -> int:
    """Values in a byte."""
    if bits not in (2, 4, 8):
        raise ValueError(f"bits is {bits}; there are 8, 4 and 2")
    if width % (8 // bits):
        raise ValueError(f"{width} channels of {bits} bits don't fill bytes; take more bits")
    return 8 // bits


def _dim(axis: Axis) -> int:
    """The dimension of `[N, G, B, D]` over which a scale is shared."""
    return 2 if axis is Axis.channel else 3
