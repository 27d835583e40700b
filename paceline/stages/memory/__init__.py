"""Context memories: a state of constant size that holds the frames behind the window."""

from __future__ import annotations

from collections.abc import Mapping

from paceline.registry import Registry
from paceline.stages.memory.protocol import ContextMemory, State, Writes

__all__ = ["MEMORIES", "ContextMemory", "State", "Writes", "make_memory"]

MEMORIES = Registry(
    "context memory",
    "paceline.context_memories",
    {
        "delta": "paceline.stages.memory.delta:DeltaMemory",
        "linear": "paceline.stages.memory.linear:LinearMemory",
        "ttt_linear": "paceline.stages.memory.ttt:TTTLinearMemory",
        "ttt_mlp": "paceline.stages.memory.ttt:TTTMLPMemory",
    },
)
"""The rules of `context.memory.kind`."""


def make_memory(kind: str, options: Mapping[str, bool | int | float | str]) -> ContextMemory:
    """The memory of a kind. Raises `ValueError` where there is none, or it does not take the options."""
    memory: ContextMemory = MEMORIES.make(kind, options)
    return memory
