"""What a recording of attention came to."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Recording"]


@dataclass(frozen=True, slots=True)
class Recording:
    """Steps (forwards of the model), most blocks at a time, bytes of the file."""

    steps: int
    blocks: int
    bytes: int
