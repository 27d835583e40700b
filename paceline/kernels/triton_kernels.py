"""The Triton kernels, where there is Triton: it comes with torch for CUDA, and not with torch for the CPU."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

__all__ = ["triton_kernels"]


@cache
def triton_kernels(name: str) -> ModuleType | None:
    """The module `NAME_triton` of this folder; None where Triton is not installed."""
    if find_spec("triton") is None:
        return None
    return import_module(f"paceline.kernels.{name}_triton")
