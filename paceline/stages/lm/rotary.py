"""Rotary position embeddings as a table, made by the model's own module: a lookup costs less than the formula."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from paceline.stages.lm.anatomy import Anatomy

__all__ = ["RotaryTable", "position_limit", "rotary_limit", "rotary_tables"]

_BLOCK = 512


def rotary_limit(module: Any) -> int | None:
    """The position from which on the frequencies of a model's rotary module depend on how long the sequence is, if
    there is one.

    Such modules (`dynamic`, `longrope`) would give a position another rotation in another batch; below the limit all
    is well. The module says what it does: the configuration may name what its class ignores.
    """
    kinds = getattr(module, "rope_type", None)
    config = getattr(module, "config", None)
    limits = []
    for kind, name in (kinds if isinstance(kinds, dict) else {None: kinds}).items():
        if name not in ("dynamic", "longrope"):
            continue
        parameters = getattr(config, "rope_parameters", None) or {}
        parameters = parameters if kind is None else parameters.get(kind) or {}
        limits.append(parameters.get("original_max_position_embeddings") or module.original_max_seq_len)
    return min((int(limit) for limit in limits), default=None)


def position_limit(anatomy: Anatomy, config: Any) -> int | None:
    """The longest sequence that a model computes as it was made to; None where nothing bounds it."""
    limits = [getattr(config, "max_position_embeddings", None)]
    if anatomy.rotary is not None:
        limits.append(rotary_limit(anatomy.rotary.module))
    if anatomy.positions is not None:
        limits.append(anatomy.positions.module.num_embeddings)
    return min((int(limit) for limit in limits if limit is not None), default=None)


class RotaryTable:
    """Cosines and sines `[positions, D]`. Grows by doubling, in blocks of fixed size, so that an entry has the same
    bits whenever it is made."""

    def __init__(
        self, module: Any, device: torch.device, dtype: torch.dtype, limit: int | None, kind: str | None
    ) -> None:
        self._module, self._limit = module, limit
        self._kind = () if kind is None else (kind,)
        self._like = torch.empty(1, 1, 1, device=device, dtype=dtype)
        self._cos: Tensor | None = None
        self._sin: Tensor | None = None

    def at(self, positions_M: Tensor, stop: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines `[1, M, D]` of positions below `stop`."""
        cos, sin = self._upto(stop)
        return cos[positions_M][None], sin[positions_M][None]

    def slice(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """The same for positions `start` to `stop - 1`, without a copy."""
        cos, sin = self._upto(stop)
        return cos[None, start:stop], sin[None, start:stop]

    def _upto(self, stop: int) -> tuple[Tensor, Tensor]:
        cos, sin = self._cos, self._sin
        have = 0 if cos is None else cos.shape[0]
        if cos is None or sin is None or stop > have:
            wanted = max(-(-stop // _BLOCK) * _BLOCK, 2 * have)
            blocks = [self._block(start) for start in range(0, wanted, _BLOCK)]
            cos = torch.cat([block[0] for block in blocks])
            sin = torch.cat([block[1] for block in blocks])
            self._cos, self._sin = cos, sin
        return cos, sin

    def _block(self, start: int) -> tuple[Tensor, Tensor]:
        positions = torch.arange(start, start + _BLOCK, device=self._like.device)
        if self._limit is not None:
            # A position beyond the limit would change the frequencies of all; nobody reads what stands there.
            positions = positions.clamp(max=self._limit - 1)
        cos, sin = self._module(self._like, positions[None], *self._kind)
        return cos[0], sin[0]


def rotary_tables(module: Any, config: Any, depth: int, device: torch.device, dtype: torch.dtype) -> list[RotaryTable]:
    """The table of each layer of a model: one for all, or one for each kind of layer where the module makes that
    difference (Gemma-3 and OLMo-3 rotate sliding layers otherwise)."""
    limit = rotary_limit(module)
    if "layer_type" not in inspect.signature(module.forward).parameters:
        return [RotaryTable(module, device, dtype, limit, None)] * depth
    of_kind = {kind: RotaryTable(module, device, dtype, limit, kind) for kind in sorted(set(config.layer_types))}
    return [of_kind[kind] for kind in config.layer_types]
