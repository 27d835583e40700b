"""What a run writes: folders, checked before it starts, and files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from paceline.launch.errors import ArgumentError

__all__ = ["check_writable_file", "fill", "make_writable", "write_atomic", "write_bytes"]


def make_writable(name: str, folder: Path, need_bytes: int = 0) -> None:
    """Make a folder where it is missing, and see that files can be written there; `name` is what asks for it, with the
    path.

    Raises `ArgumentError` where it can't be made or written, or where the disk has less than `need_bytes` left.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Permissions don't tell: of a file system that is read-only or full, and for root of any.
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0")
            probe.flush()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise ArgumentError(f"{name}: {error.strerror or error}; name a folder that can be written") from error
    if free < need_bytes:
        raise ArgumentError(
            f"{name}: the frames take {need_bytes >> 20} MiB and the disk has {free >> 20} MiB left; make room, or ask "
            "for fewer frames"
        )


def check_writable_file(name: str, file: Path) -> None:
    """See that a file can be written, in a folder that exists; one of that name stays as it is.

    Raises `ArgumentError`.
    """
    if file.is_dir():
        raise ArgumentError(f"{name}: is a folder; name a file")
    if not file.parent.is_dir():
        raise ArgumentError(f"{name}: there is no folder {file.parent}; make it first, or name another")
    make_writable(name, file.parent)


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
