"""Whether values are numbers: a weight or a result that is NaN or infinite spoils all that is computed from it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["NotFinite", "can_choose", "is_finite"]


class NotFinite(ArithmeticError):
    """What was computed holds NaN or infinity, so it stands for nothing."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} NaN or infinity; see that the weights are those of a model that works")


def is_finite(values: Tensor) -> bool:
    """Whether no value of a tensor is NaN or infinite. One pass over it, and no memory beside it."""
    if not values.is_floating_point() or not values.numel():
        return True
    low, high = torch.aminmax(values)  # NaN where any value is
    return bool(torch.isfinite(low) & torch.isfinite(high))


def can_choose(logits: Tensor) -> bool:
    """Whether every row of logits `[n, V]` has a largest value that is a number. Single tokens may be at -inf: some
    models rule tokens out that way."""
    return not logits.numel() or bool(torch.isfinite(logits.amax(dim=-1)).all())
