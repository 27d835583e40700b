"""What the layers of a model do, as seen from their cache and their attention."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.stages.lm.folder import ModelFolderError

__all__ = ["LayerTraits", "kv_shape_of"]


@dataclass(frozen=True, slots=True)
class LayerTraits:
    """What one layer does."""

    window: int | None
    """How many keys a query sees, itself included; None: all before it."""
    kv_heads: int
    key_size: int
    value_size: int
    as_tuple: bool
    """Whether the layer gives its result as the first of a tuple."""
    state_bytes: int = 0
    """Bytes of the state of constant size that it has for a sequence; 0: it keeps KV."""


def kv_shape_of(traits: tuple[LayerTraits, ...]) -> tuple[int, int]:
    """KV heads of those of these layers that keep KV, and the size of one. Raises `ModelFolderError` where there are
    none, and where they are not the same, as blocks of KV have one shape."""
    shapes = sorted({(each.kv_heads, each.key_size, each.value_size) for each in traits if not each.state_bytes})
    if not shapes:
        raise ModelFolderError(
            "its layers keep a state of constant size, and no KV that memory tiers could hold; run the model without "
            "tiers"
        )
    if len(shapes) > 1:
        one, other = shapes[:2]
        raise ModelFolderError(
            f"its layers keep KV of {one[0]} heads of {one[1]} and of {other[0]} heads of {other[1]}, and blocks of KV "
            "have one shape; run the model without tiers"
        )
    heads, key, value = shapes[0]
    if key != value:
        raise ModelFolderError(
            f"its keys have {key} numbers and its values {value}, and blocks of KV hold as many of both; run the model "
            "without tiers"
        )
    return heads, key
