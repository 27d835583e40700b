"""What a recording of attention was asked for, and what it came to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["RecordOptions", "Recording"]


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """Options of `paceline trace record`. A world takes `frames` and `sessions`, a language model the others."""

    seed: int
    frames: int = 64
    sessions: int = 1
    prompt: tuple[str, ...] = ()
    prompts: Path | None = None
    """A file of prompts, `-` for standard input."""
    max_tokens: int = 128
    temperature: float = 0.7
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Recording:
    """Steps (forwards of the model), most blocks at a time, bytes of the file."""

    steps: int
    blocks: int
    bytes: int
