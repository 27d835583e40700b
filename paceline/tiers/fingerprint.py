"""Whose KV a file holds: a file of another model, layout or rank is refused by name."""

from __future__ import annotations

import hashlib

import msgspec

from paceline.tiers.layout import Layout

__all__ = ["Fingerprint", "fingerprint"]


class Fingerprint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What has to be equal for KV to mean the same."""

    model: str
    """Name or hash of the weights."""
    layers: int
    heads: int
    block_size: int
    head_dim: int
    dtype: str
    rank: int
    world: int
    """Ranks that the model is spread over."""

    @property
    def digest(self) -> str:
        """SHA-256, hexadecimal."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()

    def differences(self, other: Fingerprint) -> str:
        """What differs, in words; empty where nothing does."""
        found = [
            f"{name} {getattr(other, name)}, not {getattr(self, name)}"
            for name in self.__struct_fields__
            if getattr(other, name) != getattr(self, name)
        ]
        return "; ".join(found)


def fingerprint(layout: Layout, model: str = "", rank: int = 0, world: int = 1) -> Fingerprint:
    """The fingerprint of a rank's KV."""
    dtype = str(layout.dtype).removeprefix("torch.")
    return Fingerprint(model, layout.layers, layout.heads, layout.block_size, layout.head_dim, dtype, rank, world)
