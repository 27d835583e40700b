"""One pass: a forward of one frame at one step over what it reads, in runs of layers.

Passes of several rows run as one forward (`batched` schedule, or several sessions). A row alone has always the same
shapes, so its bits do not depend on where or when it is computed.

Shape suffixes as in `world_model.py`: R rows, N tokens of a frame, M tokens of the context, F frames, C width, H heads,
D head size, P the rotation of one token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.pipeline.context import Read
from paceline.pipeline.program import Row
from paceline.stages.frame_cache import FrameCache
from paceline.stages.world_model import AnyWorldModel, AnyWorldSession

__all__ = ["Pass", "run_layers"]


@dataclass(slots=True, eq=False)
class Pass:
    """The state of one row between its runs of layers."""

    row: Row
    x: Tensor
    """The latent"""
    t: float
    r: float
    session: AnyWorldSession
    cache: FrameCache
    reads: tuple[Read, ...]
    embedding: Any
    """What `WorldSession.embed` returned"""
    rotation_MP: Tensor
    """Rotation of the keys of the context, then of the frame's own"""
    rotation_NP: Tensor
    """Rotation of the queries"""
    keys_only: bool
    """A clean pass: run for its KV alone, so its last layer ends once keys and values are known"""
    memory: Tensor | None
    """What the frame read from the context memory"""
    h_NC: Tensor | None = None
    output: Tensor | None = field(default=None)

    @classmethod
    def start(
        cls, model: AnyWorldModel, session: AnyWorldSession, cache: FrameCache, row: Row, reads: tuple[Read, ...],
        x: Tensor, t: float, r: float, condition: Any, keys_only: bool = False, memory: Tensor | None = None,
    ) -> Pass:  # fmt: skip
        """Look up conditions and rotations; nothing is computed on tokens yet."""
        frames = [read.frame for read in reads]
        own = [cache.rotation(frame) for frame in (*frames, row.frame)]
        rotation_FNP = model.rotation(row.frame, frames, own)
        embedding = session.embed(row.frame, t, r, condition)
        return cls(
            row,
            x,
            t,
            r,
            session,
            cache,
            reads,
            embedding,
            rotation_FNP.flatten(0, 1),
            rotation_FNP[-1],
            keys_only,
            memory,
        )

    def step_to(self) -> Tensor:
        """The latent of the frame at time r."""
        if self.output is None:
            raise RuntimeError(f"pass {self.row} has not run its last layer")
        return self.session.step_to(self.row.frame, self.row.step, self.x, self.output, self.t, self.r)


def run_layers(model: AnyWorldModel, passes: list[Pass], start: int, stop: int) -> None:
    """Run layers `start` to `stop` of some passes as one forward, and put their KV into their caches.

    After the last layer each pass but the clean ones has its output.
    """
    last = model.header.layers - 1
    if start == 0:
        reads = [p.memory for p in passes if p.memory is not None]
        h = model.enter(_rows([p.x for p in passes]), _rows(reads) if reads else None)
    else:
        h = _rows([p.h_NC for p in passes if p.h_NC is not None])
    embedding = model.batch([p.embedding for p in passes])
    for layer in range(start, stop):
        q_RHND, k_RHND, v_RHND = model.project(layer, h, embedding)
        for index, p in enumerate(passes):
            p.cache.put(p.row.frame, p.row.step, layer, k_RHND[index].contiguous(), v_RHND[index].contiguous())
        if layer == last:
            rows = [index for index, p in enumerate(passes) if not p.keys_only]
            if not rows:
                return
            if len(rows) < len(passes):
                passes = [passes[index] for index in rows]
                h, q_RHND, k_RHND, v_RHND = (x[rows] for x in (h, q_RHND, k_RHND, v_RHND))
                embedding = model.batch([p.embedding for p in passes])
        o_RHND = _attend(model, passes, layer, q_RHND, k_RHND, v_RHND)
        h = model.finish(layer, h, o_RHND, embedding)
    if stop <= last:
        for index, p in enumerate(passes):
            p.h_NC = h[index]
        return
    output = model.leave(h, embedding)
    for index, p in enumerate(passes):
        p.output, p.h_NC = output[index], None


def _rows(tensors: list[Tensor]) -> Tensor:
    """Tensors as rows of one; a single one is not copied."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)


def _attend(
    model: AnyWorldModel, passes: list[Pass], layer: int, q_RHND: Tensor, k_RHND: Tensor, v_RHND: Tensor
) -> Tensor:
    """Attention of every row over its own context and itself, `[R, H, N, D]`; rows with contexts of one length go
    through one call."""
    queries, keys, values = [], [], []
    for index, p in enumerate(passes):
        context = p.cache.context(p.reads, layer)
        k_HMD = torch.cat([*(k for k, _ in context), k_RHND[index]], dim=1)
        values.append(torch.cat([*(v for _, v in context), v_RHND[index]], dim=1))
        keys.append(model.rotate(k_HMD, p.rotation_MP))
        queries.append(model.rotate(q_RHND[index], p.rotation_NP))
        p.cache.observe(p.reads, layer, queries[-1], keys[-1])
    if len({k.shape[1] for k in keys}) == 1:
        return F.scaled_dot_product_attention(_rows(queries), _rows(keys), _rows(values))
    rows = [
        F.scaled_dot_product_attention(q[None], k[None], v[None]) for q, k, v in zip(queries, keys, values, strict=True)
    ]
    return torch.cat(rows)
