"""Steps of attention to judge selections on: synthetic keys of several kinds, and those of the embedded model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from unittest.mock import patch

import torch
from harness import ROOT
from torch import Tensor

from paceline.kernels.key_codes import KeyCodes, encode
from paceline.kernels.summaries import Summaries, summarise
from paceline.stages.lm.decoder import Decoder
from paceline.stages.lm.sequence_kv import SequenceKV
from paceline.stages.lm.tokenizer import Tokenizer
from zoo.code.corpus import stdlib

TARGET = ROOT / "zoo" / "code" / "target"
BLOCK = 16
BITS = (4, 8)
FAMILIES = ("i.i.d.", "peaked", "clustered", "random walk", "hostile")
_BLOCKS, _SHARED, _GROUP, _WIDTH = 128, 2, 4, 64
_STAY = 16
"""Steps for which a synthetic head looks at the same thing."""


@dataclass(frozen=True, slots=True)
class Step:
    """One query row of each head against the blocks that are there."""

    stream: int
    """What shares a profile: a layer of a sequence."""
    number: int
    q_HMD: Tensor
    keys_NGBD: Tensor
    counts_N: Tensor
    summaries: Summaries
    codes: tuple[KeyCodes, ...]
    """Keys at `BITS` bits."""


def synthetic_steps(family: str, steps: int) -> Iterator[Step]:
    """Steps over 128 blocks of 2 key heads and 8 query heads. Scores have a spread of 1 (i.i.d.) or the query looks at
    one key with a score of about 16 (hostile: 12 to 40), another one every 16 steps (hostile: every step)."""
    generator = torch.Generator().manual_seed(FAMILIES.index(family))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    keys = normal(_BLOCKS, _SHARED, BLOCK, _WIDTH)
    if family == "clustered":
        keys = normal(_BLOCKS, _SHARED, 1, _WIDTH) + 0.3 * keys
    elif family == "random walk":
        walk, at = [], normal(_SHARED, _WIDTH)
        for _ in range(_BLOCKS * BLOCK):
            at = 0.98 * at + 0.2 * normal(_SHARED, _WIDTH)
            walk.append(at)
        keys = torch.stack(walk).view(_BLOCKS, BLOCK, _SHARED, _WIDTH).transpose(1, 2).contiguous()
    elif family == "hostile":
        # Pairs of opposite keys, so that means say nothing; every fifth block is large in directions of its own.
        keys[:, :, 1::2] = -keys[:, :, ::2]
        keys[::5] *= 30.0
    counts = torch.full((_BLOCKS,), BLOCK)
    summaries = summarise(keys, counts)
    codes = tuple(encode(keys, counts, bits) for bits in BITS)
    heads = _SHARED * _GROUP
    target = torch.zeros(heads, _WIDTH)
    for number in range(steps):
        stays = 1 if family == "hostile" else _STAY
        if number % stays == 0:
            block = torch.randint(_BLOCKS, (heads,), generator=generator)
            if family == "random walk":
                block[:] = _BLOCKS - 1
            token = torch.randint(BLOCK, (heads,), generator=generator)
            target = keys[block, torch.arange(heads) // _GROUP, token]
            target = target / target.norm(dim=1, keepdim=True)
        size = 12.0 + 28.0 * (number % 7) / 6 if family == "hostile" else 16.0
        q = normal(heads, _WIDTH) if family == "i.i.d." else size * target + normal(heads, _WIDTH)
        yield Step(0, number, q[:, None], keys, counts, summaries, codes)


@cache
def captured(files: int) -> list[list[tuple[Tensor, Tensor, Tensor]]]:
    """Of held-out files, by layer: queries `[H, T, D]` and keys and values `[N, G, B, D]` of their first positions, as
    many whole blocks as the model takes."""
    decoder, tokenizer = Decoder.load(TARGET), Tokenizer.load(TARGET)
    longest = min(decoder.max_positions or 1024, 1024)
    plain = SequenceKV.attend
    found: list[list[tuple[Tensor, Tensor, Tensor]]] = []
    for document in stdlib().held_out:
        ids = tokenizer.encode(document.text[: 3 * longest])[:longest]
        if len(ids) < longest:
            continue
        layers: list[tuple[Tensor, Tensor, Tensor]] = []

        def attend(kv: SequenceKV, layer: int, q_HMD: Tensor, start: int, *rest: object, into=layers) -> Tensor:
            keys, values = (
                held.reshape(held.shape[0], -1, BLOCK, held.shape[2]).transpose(0, 1).contiguous()
                for held in kv.read(layer, 0, start + q_HMD.shape[1])
            )
            into.append((q_HMD.contiguous(), keys, values))
            return plain(kv, layer, q_HMD, start, *rest)

        with patch.object(SequenceKV, "attend", attend):
            sequence = decoder.open()
            decoder.forward([(sequence, torch.tensor(ids))], keep=[1])
            decoder.close(sequence)
        found.append(layers)
        if len(found) == files:
            break
    return found


def model_steps(files: int, every: int) -> Iterator[Step]:
    """Steps of every layer at every so many positions of held-out files, from the 256th on."""
    stream = 0
    for layers in captured(files):
        for q_HTD, keys, _ in layers:
            full = torch.full((len(keys),), BLOCK)
            whole, coded = summarise(keys, full), [encode(keys, full, bits) for bits in BITS]
            for position in range(256, q_HTD.shape[1], every):
                count = position // BLOCK + 1
                counts = torch.full((count,), BLOCK)
                counts[-1] = position % BLOCK + 1
                # The last block is never cold, so it does not matter that its summary is that of all its keys.
                yield Step(
                    stream, position, q_HTD[:, position : position + 1], keys[:count], counts,
                    whole, tuple(coded),
                )  # fmt: skip
            stream += 1
