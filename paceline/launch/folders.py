"""Folders that a run will write into, checked before it starts."""

from __future__ import annotations

import os
from pathlib import Path

from paceline.launch.errors import ArgumentError

__all__ = ["make_writable"]


def make_writable(name: str, folder: Path) -> None:
    """Make a folder where it is missing; `name` is what asks for it, with the path. Raises `ArgumentError` where it
    can't be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"{name}: {error.strerror}; name a folder that can be written") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ArgumentError(f"{name}: can't be written; name a folder that can")
