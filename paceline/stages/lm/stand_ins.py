"""Modules that take the place of parts of a model that a run of layers does not hold, in the model's own forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["NoPositions", "PassedOn", "put"]


class PassedOn(nn.Module):
    """Stands in for a layer: gives its input back, in the form that the layer gives its result; with `bend` not quite,
    and in a way that depends on how large it is."""

    def __init__(self, as_tuple: bool, bend: float = 0.0) -> None:
        super().__init__()
        self._as_tuple, self._bend = as_tuple, bend

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor]:
        given = hidden + self._bend * hidden.sin() if self._bend else hidden
        return (given,) if self._as_tuple else given


class NoPositions(nn.Module):
    """Stands in for an embedding of positions: adds nothing."""

    def __init__(self, hidden: int, dtype: torch.dtype) -> None:
        super().__init__()
        self._hidden, self._dtype = hidden, dtype

    def forward(self, positions: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return torch.zeros(*positions.shape, self._hidden, dtype=self._dtype, device=positions.device)


def put(model: Any, name: str, module: nn.Module) -> None:
    """Replace the part of a model that has a dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
