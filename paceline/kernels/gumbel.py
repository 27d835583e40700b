"""Draws of tokens: keyed uniforms and Gumbel noise, from Philox.

A uniform is keyed by (seed, position, epoch, branch, purpose); Gumbel noise by (seed, position) and the token's id, so
that a drafter and a target that share a seed share the noise, whatever else they disagree about.

Integers are the same on every device. A logarithm may differ in its last bit, so noise is rounded to multiples of
2**-19, which float32 holds exactly up to 32 and noise of 32-bit words never passes. That moves a probability by 2e-6 of
itself at most. On the CPU the rounds run in numpy: a row is short, and what counts is the cost of a call.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline.kernels.philox import Purpose, philox_4x32

__all__ = ["DrawKey", "GumbelRows", "gumbel", "uniforms"]

_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MULTIPLIERS = np.array([_M0, _M1], dtype=np.uint64)
_WEYL = np.array([_W0, _W1], dtype=np.uint64)
_BRANCH_BITS = 24
# Below this many draws the rounds in plain Python take less time than the calls into numpy.
_FEW = 8

_Words = NDArray[np.uint64]


class DrawKey(NamedTuple):
    """What one uniform is keyed by, beside its purpose: `position` and `epoch` of 32 bits, `branch` of 24."""

    seed: int
    position: int
    epoch: int = 0
    branch: int = 0

    def counter(self, purpose: Purpose) -> tuple[int, int, int, int]:
        """The counter of its draw. Raises `ValueError` where a part has too many bits."""
        if not (0 <= self.position <= _MASK and 0 <= self.epoch <= _MASK and 0 <= self.branch < 1 << _BRANCH_BITS):
            raise ValueError(
                f"position {self.position}, epoch {self.epoch} or branch {self.branch} has too many bits for a draw: "
                f"32, 32 and {_BRANCH_BITS} there are"
            )
        # Purposes take the low byte alone, as in `words`, so that draws of the two kinds never share a counter.
        return 0, self.position, self.epoch, int(purpose) | self.branch << 8


def uniforms(keys: Sequence[DrawKey], purpose: Purpose) -> Tensor:
    """One uniform of 53 bits for each key: float64 `[n]` on the CPU, inside (0, 1)."""
    if len(keys) < _FEW:
        words = [_philox_int(key.counter(purpose), key.seed) for key in keys]
        return torch.tensor([((w0 >> 5) * 2**26 + (w1 >> 6) + 0.5) * 2**-53 for w0, w1 in words], dtype=torch.float64)
    counter = np.array([key.counter(purpose) for key in keys], dtype=np.uint64)
    even, odd = _philox_numpy(counter.T[0::2].copy(), counter.T[1::2].copy(), _halves([key.seed for key in keys]))
    high, low = even[0] >> np.uint64(5), odd[0] >> np.uint64(6)
    return torch.from_numpy(((high * np.uint64(2**26) + low).astype(np.float64) + 0.5) * 2**-53)


def gumbel(
    seeds: Sequence[int], positions: Sequence[int], vocabulary: int, device: str | torch.device = "cpu"
) -> Tensor:
    """Standard Gumbel noise, float32 `[n, V]`: row i is that of `positions[i]` under `seeds[i]`, column v that of token
    v. The first columns are the same whatever V is.

    argmax(log p + noise) is then distributed as p (Gumbel 1954; Maddison, Tarlow and Minka, NeurIPS 2014).
    """
    blocks = (vocabulary + 3) // 4
    if torch.device(device).type == "cpu":
        words = _rows_numpy(seeds, positions, blocks)
    else:
        words = _rows_torch(seeds, positions, blocks, device)
    x = words.view(len(seeds), -1)[:, :vocabulary].to(torch.float64)
    x.add_(0.5).mul_(2**-32).log_().neg_().log_().mul_(-(2**19)).round_().mul_(2**-19)
    return x.to(torch.float32)


class GumbelRows:
    """Noise of whole runs of positions at a time, because a call costs more than a row; the last runs are kept.

    A run is about `elements` values long, at least one position; `runs` of them are held.
    """

    def __init__(
        self, vocabulary: int, device: str | torch.device = "cpu", elements: int = 1 << 16, runs: int = 64
    ) -> None:
        self.vocabulary, self.device = vocabulary, device
        self._length = max(1, elements // vocabulary)
        self._most = runs
        self._runs: OrderedDict[tuple[int, int], Tensor] = OrderedDict()

    def rows(self, seeds: Sequence[int], positions: Sequence[int]) -> Tensor:
        """As `gumbel`: float32 `[n, V]`."""
        if not seeds:
            return torch.empty(0, self.vocabulary, device=self.device)
        return torch.stack([self._row(seed, position) for seed, position in zip(seeds, positions, strict=True)])

    def _row(self, seed: int, position: int) -> Tensor:
        number, index = divmod(position, self._length)
        run = self._runs.get((seed, number))
        if run is None:
            first = number * self._length
            run = gumbel([seed] * self._length, range(first, first + self._length), self.vocabulary, self.device)
            self._runs[seed, number] = run
            if len(self._runs) > self._most:
                self._runs.popitem(last=False)
        else:
            self._runs.move_to_end((seed, number))
        return run[index]


def _rows_numpy(seeds: Sequence[int], positions: Sequence[int], blocks: int) -> Tensor:
    n = len(seeds)
    low, high = _halves(positions)
    even = np.empty((2, n, blocks), dtype=np.uint64)
    odd = np.empty_like(even)
    even[0] = np.arange(blocks, dtype=np.uint64)
    even[1] = high[:, None]
    odd[0] = low[:, None]
    odd[1] = int(Purpose.gumbel)
    even, odd = _philox_numpy(even, odd, _halves(seeds)[:, :, None])
    words = np.empty((n, blocks, 4), dtype=np.uint32)
    words[..., 0], words[..., 1], words[..., 2], words[..., 3] = even[0], odd[0], even[1], odd[1]
    return torch.from_numpy(words)


def _rows_torch(seeds: Sequence[int], positions: Sequence[int], blocks: int, device: str | torch.device) -> Tensor:
    counter = torch.empty(len(seeds), blocks, 4, dtype=torch.int64, device=device)
    low, high = (torch.from_numpy(h.astype(np.int64)).to(device)[:, None] for h in _halves(positions))
    counter[..., 0] = torch.arange(blocks, device=device)
    counter[..., 1], counter[..., 2], counter[..., 3] = low, high, int(Purpose.gumbel)
    k0, k1 = (torch.from_numpy(h.astype(np.int64)).to(device)[:, None] for h in _halves(seeds))
    return philox_4x32(counter, (k0, k1))


def _halves(values: Sequence[int]) -> _Words:
    """Low and high 32 bits: `[2, n]`."""
    return np.array([[v & _MASK for v in values], [(v >> 32) & _MASK for v in values]], dtype=np.uint64)


def _philox_numpy(even: _Words, odd: _Words, key: _Words) -> tuple[_Words, _Words]:
    """Ten rounds over the words 0, 2 and 1, 3 of counters: `[2, ...]` each, under keys `[2, ...]`."""
    shape = (2,) + (1,) * (even.ndim - 1)
    multipliers, weyl = _MULTIPLIERS.reshape(shape), _WEYL.reshape(shape)
    mask, shift = np.uint64(_MASK), np.uint64(32)
    for _ in range(10):
        product = even * multipliers
        # The high half of the second product meets the first key, and the other way round.
        even = (product[::-1] >> shift) ^ odd
        even ^= key
        odd = product[::-1] & mask
        key = (key + weyl) & mask
    return even, odd


def _philox_int(counter: tuple[int, int, int, int], seed: int) -> tuple[int, int]:
    """The first two words of ten rounds, in Python's integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1
