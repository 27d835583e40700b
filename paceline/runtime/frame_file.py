"""Frames on disk as they come: a `.npy` file that grows."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["FrameFile"]

_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = 128


class FrameFile:
    """A file in NumPy's format 1.0, `[T, H, W, 3]` uint8, that holds whole frames at any time.

    The header is written anew after each frame, so `np.load` reads what has come, also of a run that was killed.
    Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    """

    def __init__(self, path: Path) -> None:
        """Make the file; one of that name goes. Raises `OSError`."""
        self.path = path
        self.frames = 0
        self._shape: tuple[int, ...] = ()
        path.unlink(missing_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def append(self, frame: npt.NDArray[np.uint8]) -> None:
        """Add a frame `[H, W, 3]`. Raises `OSError`, and `ValueError` for a frame of another shape than the first."""
        if not self.frames:
            self._shape = frame.shape
        if frame.shape != self._shape:
            raise ValueError(f"{self.path}: a frame of shape {list(frame.shape)} behind ones of {list(self._shape)}")
        data = memoryview(frame.tobytes())
        self._write(data, _HEADER + self.frames * len(data))
        self._write(memoryview(self._header(self.frames + 1)), 0)
        self.frames += 1

    def close(self) -> None:
        """Close the file; may be called again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _header(self, frames: int) -> bytes:
        fields = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {(frames, *self._shape)}, }}"
        room = _HEADER - len(_MAGIC) - 2
        return _MAGIC + room.to_bytes(2, "little") + fields.ljust(room - 1).encode() + b"\n"

    def _write(self, data: memoryview, offset: int) -> None:
        while data:
            written = os.pwrite(self._file, data, offset)
            data, offset = data[written:], offset + written
