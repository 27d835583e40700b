"""Generated traces: attention that was planted, so that what matters when is known. No download, no model.

Every layer gives a share of its mass to sinks (the first block), to what was said last (falling off exponentially with
distance), to the content at large (lognormal over blocks, with noise from step to step) and to what a family is about.
The shares differ from layer to layer and lie where StreamingLLM (Xiao et al., ICLR 2024) and DuoAttention (Xiao et al.,
2024) found those of real models: few layers look for things, most mass rests on sinks and neighbours, and a layer that
looks for nothing rests on sinks. What a question asks for cannot be foreseen from the masses before it.

Draws are keyed by (seed, purpose, step), so a trace is a function of its family, seed and sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch

from paceline.kernels.philox import philox_4x32
from paceline.tiers.block_stats import Floats, Ints
from paceline.tiers.traces.format import TraceHeader
from paceline.tiers.traces.trace import BlockTable, Call, Step, Trace

__all__ = ["FAMILIES", "Sizes", "planted"]

_PURPOSE = 200
"""The last word of every counter; far from the purposes of `Purpose`."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large a generated trace is."""

    prompt: int = 16384
    """tokens"""
    steps: int = 512
    """decoded tokens, after the one step that stands for the prompt's last pass"""
    block: int = 16
    """tokens of a block"""
    block_bytes: int = 65536
    """of keys and values: 16 tokens, 8 heads of 128 numbers, bfloat16"""


@dataclass(frozen=True, slots=True)
class _Layer:
    """Shares of the mass of one layer, which sum to 1, and how far its neighbours reach."""

    sink: float
    local: float
    content: float
    sought: float
    reach: float
    """tokens over which local mass falls to 1/e"""


_LAYERS = (
    _Layer(sink=0.05, local=0.75, content=0.20, sought=0.00, reach=96),
    _Layer(sink=0.35, local=0.30, content=0.10, sought=0.25, reach=192),
    _Layer(sink=0.35, local=0.15, content=0.05, sought=0.45, reach=64),
    _Layer(sink=0.25, local=0.30, content=0.20, sought=0.25, reach=384),
)

_Sought = Sequence[tuple[int, float]]
"""Positions in tokens that are looked for at a step, and their weights, which sum to 1; empty where nothing is."""


def planted(family: str, seed: int = 0, sizes: Sizes | None = None) -> Trace:
    """A trace of a family of `FAMILIES`. Raises `ValueError` for a name that is none."""
    if family not in FAMILIES:
        raise ValueError(f"there is no family {family!r} of traces; there are {', '.join(FAMILIES)}")
    return _Planter(family, seed, sizes or Sizes()).trace()


class _Draws:
    """Uniforms in (0, 1), keyed by what they are for."""

    def __init__(self, seed: int, family: str) -> None:
        self._key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
        self._family = list(FAMILIES).index(family)

    def uniform(self, count: int, what: int, step: int = 0) -> Floats:
        counter = torch.zeros((count + 3) // 4, 4, dtype=torch.int64)
        counter[:, 0] = torch.arange(len(counter))
        counter[:, 1], counter[:, 2] = step, what << 8 | self._family
        counter[:, 3] = _PURPOSE
        words = philox_4x32(counter, self._key).flatten()[:count].numpy()
        return (words.astype(np.float64) + 0.5) * 2.0**-32

    def normal(self, count: int, what: int, step: int = 0) -> Floats:
        """By Box and Muller's transform."""
        half = (count + 1) // 2
        u = self.uniform(2 * half, what, step)
        radius, angle = np.sqrt(-2 * np.log(u[:half])), 2 * np.pi * u[half:]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]

    def whole(self, below: int, what: int, step: int = 0) -> int:
        return int(self.uniform(1, what, step)[0] * below)


# -- what is looked for when -------------------------------------------------------------------------------------------


def _runs(draws: _Draws, steps: int, rest: range, work: range) -> Iterator[tuple[int, int, int]]:
    """Number, first and past-last step of stretches in which something is looked for, with rests between."""
    at, number = 1, 0
    while True:
        at += rest.start + draws.whole(len(rest), 1, number)
        if at >= steps:
            return
        end = at + work.start + draws.whole(len(work), 2, number)
        yield number, at, min(end, steps)
        at, number = end, number + 1


def _needles(draws: _Draws, sizes: Sizes) -> Sequence[_Sought]:
    """Five facts at fixed depths; now and then one of them is asked for, and read while the answer is written."""
    sought: list[_Sought] = [() for _ in range(sizes.steps)]
    needles = [int(sizes.prompt * depth) for depth in (0.1, 0.3, 0.5, 0.7, 0.9)]
    for number, first, last in _runs(draws, sizes.steps, range(12, 33), range(16, 41)):
        at = needles[draws.whole(len(needles), 3, number)]
        for step in range(first, last):
            sought[step] = ((at, 0.8), (at + sizes.block, 0.2))
    return sought


def _keys(draws: _Draws, sizes: Sizes) -> Sequence[_Sought]:
    """64 keys with values, all over the document; questions that need four of them, some keys more often."""
    sought: list[_Sought] = [() for _ in range(sizes.steps)]
    keys = (draws.uniform(64, 3) * (sizes.prompt - sizes.block)).astype(np.int64)
    often = np.cumsum(1 / np.arange(1, 65))
    for number, first, last in _runs(draws, sizes.steps, range(4, 13), range(12, 29)):
        drawn = np.searchsorted(often / often[-1], draws.uniform(4, 4, number))
        for step in range(first, last):
            # The answer goes through them one after the other, with an eye on all.
            now = (step - first) * 4 // max(last - first, 1)
            sought[step] = [(int(keys[k]), 0.7 if i == now else 0.1) for i, k in enumerate(drawn)]
    return sought


def _revisit(draws: _Draws, sizes: Sizes) -> Sequence[_Sought]:
    """A document is read again, passage by passage: attention walks along with what is written, a token a step."""
    sought: list[_Sought] = [() for _ in range(sizes.steps)]
    passages = (draws.uniform(6, 3) * (sizes.prompt - 128)).astype(np.int64)
    for number, first, last in _runs(draws, sizes.steps, range(8, 25), range(48, 97)):
        start = int(passages[draws.whole(len(passages), 4, number)])
        for step in range(first, last):
            at = start + step - first
            sought[step] = ((at, 0.7), (at + sizes.block // 2, 0.2), (max(at - sizes.block, 0), 0.1))
    return sought


def _chatter(draws: _Draws, sizes: Sizes) -> Sequence[_Sought]:
    """Nothing is ever looked for."""
    return [() for _ in range(sizes.steps)]


FAMILIES: Mapping[str, Callable[[_Draws, Sizes], Sequence[_Sought]]] = MappingProxyType(
    {"needles": _needles, "keys": _keys, "revisit": _revisit, "chatter": _chatter}
)
"""What there is: needles at several depths, retrieval of several keys, a document revisited, local chatter."""

_LOCAL = frozenset({"chatter"})


# -- masses ------------------------------------------------------------------------------------------------------------


class _Planter:
    """Turns what is looked for into masses of blocks."""

    def __init__(self, family: str, seed: int, sizes: Sizes) -> None:
        self._family, self._seed, self._sizes = family, seed, sizes
        self._draws = _Draws(seed, family)
        self._most = -(-(sizes.prompt + sizes.steps) // sizes.block)
        self._content = [np.exp(1.5 * self._draws.normal(self._most, 10 + layer)) for layer in range(len(_LAYERS))]
        """How much each block has to say, whatever is asked."""

    def trace(self) -> Trace:
        sizes, layers = self._sizes, len(_LAYERS)
        sought = FAMILIES[self._family](self._draws, sizes)
        steps = []
        for step in range(sizes.steps):
            length = sizes.prompt + step
            n = -(-length // sizes.block)
            calls = [
                Call(
                    0, layer, length, np.arange(n) * layers + layer, self._masses(layer, step, length, n, sought[step])
                )
                for layer in range(layers)
            ]
            steps.append(Step(step, calls, np.zeros(0, dtype=np.int64)))
        number = np.arange(steps[-1].calls[0].blocks.size * layers)
        start: Ints = number // layers * sizes.block
        table = BlockTable(
            session=np.zeros(len(number), dtype=np.int64),
            layer=(number % layers).astype(np.int32),
            start=start,
            place=np.full(len(number), -1, dtype=np.int32),
            sink=start == 0,
        )
        source = f"planted, seed {self._seed}, {sizes.prompt} tokens of prompt"
        return Trace(TraceHeader(self._family, sizes.block, sizes.block_bytes, source), table, steps)

    def _masses(self, layer: int, step: int, length: int, n: int, sought: _Sought) -> Floats:
        """Masses `[n]` of one layer at one step; they sum to 1."""
        shares, block = _LAYERS[layer], self._sizes.block
        content_share = 0.02 if self._family in _LOCAL else shares.content
        sought_share = 0.0 if self._family in _LOCAL else shares.sought
        local_share = shares.local + shares.content - content_share + shares.sought - sought_share
        # By tokens: e^(-distance / reach) over a block is a difference of two exponentials.
        near = np.minimum(np.arange(1, n + 1) * block, length) - length
        far = np.arange(n) * block - length
        local = np.exp(near / shares.reach) - np.exp(far / shares.reach)
        noise = np.exp(0.5 * self._draws.normal(n, 20 + layer, step))
        content = self._content[layer][:n] * noise
        masses = local_share * local / local.sum() + content_share * content / content.sum()
        masses[0] += shares.sink
        if not sought:
            masses[0] += sought_share
        for position, weight in sought:
            masses[min(position // block, n - 1)] += sought_share * weight
        return np.asarray(masses, dtype=np.float64)
