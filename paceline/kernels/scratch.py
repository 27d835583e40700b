"""Buffers that one thread uses again and again: fresh memory costs a page fault for every 4 KiB, more than a gather."""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

__all__ = ["gather"]


class _Held(threading.local):
    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}


_held = _Held()


def gather(name: str, source_SX: Tensor, slots_N: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of a tensor in another dtype: `source_SX[slots_N].to(dtype)`.

    On the CPU it lies in a buffer of this thread and is overwritten by the next call under the same name; a buffer is
    as large as the largest call so far.
    """
    if source_SX.device.type != "cpu":
        return source_SX.index_select(0, slots_N).to(dtype)
    shape = (len(slots_N), *source_SX.shape[1:])
    found = torch.index_select(source_SX, 0, slots_N, out=_buffer(name, source_SX.dtype, shape))
    return found if source_SX.dtype == dtype else _buffer(name, dtype, shape).copy_(found)


def _buffer(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    count = math.prod(shape)
    held = _held.buffers.get((name, dtype))
    if held is None or held.numel() < count:
        # A buffer made in inference mode could not be written outside of it.
        with torch.inference_mode(False):
            held = torch.empty(count, dtype=dtype)
        _held.buffers[name, dtype] = held
    return held[:count].view(shape)
