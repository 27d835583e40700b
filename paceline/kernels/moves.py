"""Copies of blocks from some slots of an arena to some slots of another, whichever memory either lies in."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline.kernels.triton_kernels import triton_kernels

__all__ = ["copy_blocks"]

_LONG = 8
"""From so many neighbouring slots on, on average, the copy engine is faster than a kernel that reads across the bus."""


@torch.no_grad()
def copy_blocks(
    source_SGBD: Tensor, source_slots_N: NDArray[np.int64], target_SGBD: Tensor, target_slots_N: NDArray[np.int64]
) -> None:
    """`target_SGBD[target_slots_N] = source_SGBD[source_slots_N]`, bit for bit.

    Arenas `[S, G, B, D]` of one dtype, contiguous; slots int64 `[N]` on the host, those of the target all different. If
    both are one arena, no slot may be on both sides.

    Within a device it is one gather and one scatter. Between a CUDA device and pinned memory of the host it is
    asynchronous, in the present stream: runs of neighbours go through the copy engine, and scattered slots, where
    Triton is there, through one kernel that reads or writes the host's memory itself, as a copy engine's call costs as
    much as the transfer of some 100 KiB. Memory of the host that is not pinned is copied synchronously.

    Raises `ValueError` for arenas whose blocks differ in shape or dtype, or slots of different numbers.
    """
    if source_SGBD.shape[1:] != target_SGBD.shape[1:] or source_SGBD.dtype != target_SGBD.dtype:
        raise ValueError(
            f"blocks of {list(source_SGBD.shape[1:])} {source_SGBD.dtype} can't be copied to blocks of "
            f"{list(target_SGBD.shape[1:])} {target_SGBD.dtype}"
        )
    if len(source_slots_N) != len(target_slots_N):
        raise ValueError(f"{len(source_slots_N)} slots to copy from, but {len(target_slots_N)} to copy to")
    if not len(source_slots_N):
        return
    if source_SGBD.device == target_SGBD.device:
        taken_N = torch.from_numpy(source_slots_N).to(source_SGBD.device)
        placed_N = torch.from_numpy(target_slots_N).to(target_SGBD.device)
        target_SGBD.index_copy_(0, placed_N, source_SGBD.index_select(0, taken_N))
        return
    runs = _runs(source_slots_N, target_slots_N)
    if len(source_slots_N) < _LONG * len(runs) and _reaches(source_SGBD, target_SGBD):
        triton = triton_kernels("moves")
        if triton is not None:
            triton.copy_blocks(source_SGBD, source_slots_N, target_SGBD, target_slots_N)
            return
    for first, place, count in runs:
        target_SGBD.narrow(0, place, count).copy_(source_SGBD.narrow(0, first, count), non_blocking=True)


def _reaches(source: Tensor, target: Tensor) -> bool:
    """Whether a CUDA device can read the one and write the other."""
    kinds = [tensor.device.type == "cuda" or tensor.is_pinned() for tensor in (source, target)]
    return all(kinds) and "cuda" in (source.device.type, target.device.type)


def _runs(source_N: NDArray[np.int64], target_N: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Runs in which both sides are neighbours: first slot on either side, and how many."""
    cuts = np.flatnonzero((np.diff(source_N) != 1) | (np.diff(target_N) != 1)) + 1
    bounds = [0, *cuts.tolist(), len(source_N)]
    return [(int(source_N[a]), int(target_N[a]), b - a) for a, b in pairwise(bounds)]
