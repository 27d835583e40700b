"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["fill", "write_atomic", "write_bytes"]


def write_atomic(path: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary file beside `path`, then rename it. Returns `path`.

    An older file of that name is replaced; where `write` raises, it stays as it was and the temporary file goes.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_bytes(path: Path, data: bytes) -> Path:
    """Write `data` to `path`, whole or not at all."""
    return write_atomic(path, lambda temporary: fill(temporary, data))


def fill(path: Path, data: bytes) -> None:
    """Write `data` to a file as it is."""
    path.write_bytes(data)
