"""What travels on an edge."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from paceline.pipeline.unit import Key

__all__ = ["Item", "Key", "Meta"]

Meta = dict[str, int | float | str]


@dataclass(frozen=True, slots=True)
class Item:
    """Tensors and small metadata under a key. `epoch` is the generation of the session that made it."""

    key: Key
    tensors: tuple[Tensor, ...] = ()
    meta: Meta = field(default_factory=dict)
    epoch: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)
