"""One pass: a forward of one frame at one step over what it reads, in runs of layers.

Passes of several rows run as one forward (`batched` schedule, or several sessions). A row alone has always the same
shapes, so its bits do not depend on where or when it is computed.

Shape suffixes as in `dit.py`: R rows, N tokens of a frame, M tokens of the context, C width, H heads, D head size,
P rotary pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.pipeline.context import Read
from paceline.pipeline.program import Row
from paceline.stages.dit import DiT, FrameCondition, rotate
from paceline.stages.frame_cache import FrameCache

__all__ = ["ConditionTable", "Pass", "run_layers"]


class ConditionTable:
    """Modulations by (t, r, action, heading). There are few of these, so each is computed once and kept."""

    def __init__(self, model: DiT) -> None:
        self._model = model
        self._table: dict[tuple[float, float, int, int], Tensor] = {}

    def get(self, t: float, r: float, condition: FrameCondition) -> Tensor:
        """Modulations of all layers, `[1, 6 L + 2, C]`."""
        key = (t, r, condition.action, condition.heading)
        found = self._table.get(key)
        if found is None:
            device = self._model.place.device
            found = self._model.condition(
                torch.tensor([t], device=device),
                torch.tensor([r], device=device),
                torch.tensor([condition.action], device=device),
                torch.tensor([condition.heading], device=device),
            )
            self._table[key] = found
        return found


@dataclass(slots=True, eq=False)
class Pass:
    """The state of one row between its runs of layers."""

    row: Row
    x_NE: Tensor
    t: float
    r: float
    cache: FrameCache
    reads: tuple[Read, ...]
    modulation: Tensor
    rotation_MP: Tensor
    """Rotation of the keys of the context, then of the frame's own"""
    rotation_NP: Tensor
    """Rotation of the queries"""
    keys_only: bool
    """A clean pass: run for its KV alone, so its last layer ends once keys and values are known"""
    h_NC: Tensor | None = None
    velocity_NE: Tensor | None = field(default=None)

    @classmethod
    def start(
        cls, model: DiT, table: ConditionTable, cache: FrameCache, row: Row, reads: tuple[Read, ...],
        x_NE: Tensor, t: float, r: float, condition: FrameCondition, keys_only: bool = False,
    ) -> Pass:  # fmt: skip
        """Look up conditions and rotations; nothing is computed on tokens yet."""
        n = model.config.tokens
        far = model.config.max_distance
        distances = [min(row.frame - read.frame, far) for read in reads] + [0]
        index = torch.tensor(distances, device=x_NE.device)
        time_FP = model.time_rotation(index)
        space_FNP = torch.stack([*(cache.space(read.frame) for read in reads), cache.space(row.frame)])
        rotation = torch.cat([time_FP[:, None].expand(-1, n, -1), space_FNP], dim=-1)
        return cls(
            row, x_NE, t, r, cache, reads, table.get(t, r, condition), rotation.flatten(0, 1), rotation[-1], keys_only
        )

    def step_to(self) -> Tensor:
        """The frame at time r: x_r = x_t - (t - r) u."""
        if self.velocity_NE is None:
            raise RuntimeError(f"pass {self.row} has not run its last layer")
        return torch.add(self.x_NE, self.velocity_NE, alpha=-(self.t - self.r))


def run_layers(model: DiT, passes: list[Pass], start: int, stop: int) -> None:
    """Run layers `start` to `stop` of some passes as one forward, and put their KV into their caches.

    After the last layer each pass but the clean ones has its velocity.
    """
    last = len(model.blocks) - 1
    if start == 0:
        h = model.enter(_rows([p.x_NE for p in passes]))
    else:
        h = _rows([p.h_NC for p in passes if p.h_NC is not None])
    modulation = passes[0].modulation if len(passes) == 1 else torch.cat([p.modulation for p in passes])
    for layer in range(start, stop):
        block = model.block(layer)
        q_RHND, k_RHND, v_RHND = block.project(h, model.layer_modulation(modulation, layer))
        for index, p in enumerate(passes):
            p.cache.put(p.row.frame, p.row.step, layer, k_RHND[index].contiguous(), v_RHND[index].contiguous())
        if layer == last:
            rows = [index for index, p in enumerate(passes) if not p.keys_only]
            if not rows:
                return
            if len(rows) < len(passes):
                passes = [passes[index] for index in rows]
                h, modulation, q_RHND, k_RHND, v_RHND = (x[rows] for x in (h, modulation, q_RHND, k_RHND, v_RHND))
        o_RHND = _attend(passes, layer, q_RHND, k_RHND, v_RHND)
        h = block.finish(h, o_RHND, model.layer_modulation(modulation, layer))
    if stop <= last:
        for index, p in enumerate(passes):
            p.h_NC = h[index]
        return
    velocity = model.leave(h, modulation)
    for index, p in enumerate(passes):
        p.velocity_NE, p.h_NC = velocity[index], None


def _rows(tensors: list[Tensor]) -> Tensor:
    """Tensors as rows of one; a single one is not copied."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)


def _attend(passes: list[Pass], layer: int, q_RHND: Tensor, k_RHND: Tensor, v_RHND: Tensor) -> Tensor:
    """Attention of every row over its own context and itself, `[R, H, N, D]`; rows with contexts of one length go
    through one call."""
    queries, keys, values = [], [], []
    for index, p in enumerate(passes):
        context = p.cache.context(p.reads, layer)
        k_HMD = torch.cat([*(k for k, _ in context), k_RHND[index]], dim=1)
        values.append(torch.cat([*(v for _, v in context), v_RHND[index]], dim=1))
        keys.append(rotate(k_HMD, p.rotation_MP))
        queries.append(rotate(q_RHND[index], p.rotation_NP))
        p.cache.look(p.reads, layer, queries[-1], keys[-1])
    if len({k.shape[1] for k in keys}) == 1:
        return F.scaled_dot_product_attention(_rows(queries), _rows(keys), _rows(values))
    rows = [
        F.scaled_dot_product_attention(q[None], k[None], v[None]) for q, k, v in zip(queries, keys, values, strict=True)
    ]
    return torch.cat(rows)
