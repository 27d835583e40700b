"""Keys and queries of many kinds, ordinary and hostile, for bounds that have to hold for all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.kernels.blocks import randn

KINDS = ("iid", "peaked", "clustered", "walk", "outlier", "huge", "tiny", "equal", "aligned", "cancelling")


def keys_of(kind: str, seed: int, count: int, shared: int, block: int, width: int) -> Tensor:
    """Keys `[N, G, B, D]` float32."""
    keys = randn(seed, count, shared, block, width)
    if kind == "peaked":
        keys[seed % count, :, seed % block] *= 8.0
    elif kind == "clustered":
        keys = 0.1 * keys + 2.0 * randn(seed + 1, count, shared, 1, width)
    elif kind == "walk":
        steps = keys.transpose(0, 1).flatten(1, 2).cumsum(1) * 0.3
        keys = steps.view(shared, count, block, width).transpose(0, 1).contiguous()
    elif kind == "outlier":
        keys[..., seed % width] *= 50.0
    elif kind == "huge":
        keys *= 10.0 ** (4 + seed % 16)
    elif kind == "tiny":
        keys *= 10.0 ** -(10 + seed % 30)
    elif kind == "equal":
        keys = keys[:, :, :1].expand(keys.shape).contiguous()
    elif kind == "aligned":
        keys = keys.abs() + 3.0
    elif kind == "cancelling":
        # Large in opposite directions, so that sums of products lose most of their digits.
        keys[..., : width // 2] += 1e4
        keys[..., width // 2 :] -= 1e4
    return keys


def queries_of(kind: str, seed: int, keys_NGBD: Tensor, group: int, rows: int) -> Tensor:
    """Queries `[G * group, M, D]` float32: random ones, and in the first row one that looks straight at a key."""
    count, shared, block, width = keys_NGBD.shape
    q = randn(seed + 2, shared * group, rows, width)
    if kind == "cancelling":
        q = q.abs() + 1.0
    target = keys_NGBD[seed % count, :, seed % block].repeat_interleave(group, dim=0)
    size = target.norm(dim=1, keepdim=True)
    q[:, 0] = torch.where(size > 0, target / size, target) * width**0.5
    return q
