"""Copies of scattered blocks by a kernel: one launch, whatever their number, across the bus too."""

from __future__ import annotations

import numpy as np
import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["copy_blocks"]

_CHUNK = 4096
"""Words that a program copies."""


@triton.jit  # type: ignore[untyped-decorator]
def _copy(
    source_SW: tl.tensor,
    target_SW: tl.tensor,
    slots_2N: tl.tensor,
    count: tl.tensor,
    words: tl.tensor,
    CHUNK: tl.constexpr,
) -> None:
    number = tl.program_id(0)
    word = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    taken = tl.load(slots_2N + number)
    placed = tl.load(slots_2N + count + number)
    held = tl.load(source_SW + taken * words + word, mask=word < words)
    tl.store(target_SW + placed * words + word, held, mask=word < words)


def copy_blocks(
    source_SGBD: Tensor, source_slots_N: NDArray[np.int64], target_SGBD: Tensor, target_slots_N: NDArray[np.int64]
) -> None:
    """As `moves.copy_blocks`. Each side is on a CUDA device or in pinned memory, which has the same address there."""
    device = source_SGBD.device if source_SGBD.device.type == "cuda" else target_SGBD.device
    slots_2N = torch.from_numpy(np.stack([source_slots_N, target_slots_N])).to(device)
    # Words of 32 bits where they fit, so that a copy takes as few instructions as it can and no number is looked at.
    nbytes = source_SGBD[0].nbytes
    kind = torch.int32 if nbytes % 4 == 0 else torch.uint8
    words = nbytes // kind.itemsize
    count = len(source_slots_N)
    _copy[(count, -(-words // _CHUNK))](
        source_SGBD.view(len(source_SGBD), -1).view(kind),
        target_SGBD.view(len(target_SGBD), -1).view(kind),
        slots_2N,
        count,
        words,
        _CHUNK,
    )
