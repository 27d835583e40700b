"""Counter-based random numbers: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

A draw is a function of (seed, position, purpose) and of nothing else; integer arithmetic alone, so every device gives
the same bits. Normals come from a table of the inverse distribution function at 2**16 points, rounded to multiples of
2**-14 so that the last bit of a platform's logarithm can't show.
"""

from __future__ import annotations

import math
from enum import IntEnum
from functools import cache
from statistics import NormalDist

import torch
from torch import Tensor

__all__ = ["Purpose", "normal", "philox_4x32", "session_seed", "words"]

_MASK = 0xFFFFFFFF
_MULTIPLIER = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


class Purpose(IntEnum):
    """What a draw is for; part of its counter, so that two purposes never share a draw."""

    noise = 1
    """the noise a frame starts from"""
    session = 2
    """the seed of a session"""
    jitter = 3
    """injected delays"""
    gumbel = 4
    """the noise of a token's draw, shared by target and drafter"""
    draft = 5
    """a drafted token"""
    accept = 6
    """whether a drafted token is accepted"""
    residual = 7
    """the replacement of a rejected token"""
    plain = 8
    """a token of a pass without drafts"""
    bonus = 9
    """the token behind a fully accepted window"""
    memory = 10
    """the keys of a context memory, and the weights that it begins with"""
    renoise = 11
    """the noise that is added to a frame between two denoising steps"""


def philox_4x32(counter: Tensor, key: tuple[int, int] | tuple[Tensor, Tensor]) -> Tensor:
    """Ten rounds over counters `[..., 4]` (int64 holding 32-bit words); returns words of the same shape. The two words
    of the key may be tensors that broadcast against `[...]`.

    Products wrap modulo 2**64, so the high word is right although int64 is signed.
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0: int | Tensor
    k1: int | Tensor
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIER[0], c2 * _MULTIPLIER[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return torch.stack([c0, c1, c2, c3], dim=-1)


def words(seed: int, position: int, purpose: Purpose, count: int, device: str | torch.device = "cpu") -> Tensor:
    """`count` 32-bit words (int64) of the draw (seed, position, purpose)."""
    blocks = (count + 3) // 4
    counter = torch.empty(blocks, 4, dtype=torch.int64, device=device)
    counter[:, 0] = torch.arange(blocks, device=device)
    counter[:, 1] = position & _MASK
    counter[:, 2] = (position >> 32) & _MASK
    counter[:, 3] = int(purpose)
    return philox_4x32(counter, (seed & _MASK, (seed >> 32) & _MASK)).flatten()[:count]


def session_seed(seed: int, session: int) -> int:
    """The seed of one session of a run: 63 bits."""
    low, high = words(seed, session, Purpose.session, 2).tolist()
    return int(low | (high & 0x7FFFFFFF) << 32)


@cache
def _normal_table(device: str) -> Tensor:
    inverse = NormalDist().inv_cdf
    half = [round(inverse((i + 0.5) / 65536) * 16384) / 16384 for i in range(32768, 65536)]
    return torch.tensor([-v for v in reversed(half)] + half, dtype=torch.float32, device=device)


def normal(
    seed: int, position: int, purpose: Purpose, shape: tuple[int, ...], device: str | torch.device = "cpu"
) -> Tensor:
    """Standard normal float32 tensor of `shape`; values reach about 4.3 standard deviations."""
    count = math.prod(shape)
    raw = words(seed, position, purpose, (count + 1) // 2, device)
    index = torch.stack([raw & 0xFFFF, raw >> 16], dim=-1).flatten()[:count]
    return _normal_table(str(torch.device(device)))[index].view(shape)
