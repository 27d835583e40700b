"""Whether values are numbers: a weight or a result that is NaN or infinite spoils all that is computed from it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["is_finite"]


def is_finite(values: Tensor) -> bool:
    """Whether no value of a tensor is NaN or infinite. One pass over it, and no memory beside it."""
    if not values.is_floating_point() or not values.numel():
        return True
    low, high = torch.aminmax(values)  # NaN where any value is
    return bool(torch.isfinite(low) & torch.isfinite(high))
