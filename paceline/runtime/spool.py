"""Files that records and frames are appended to while a run goes on, so that no rank keeps them in memory."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from paceline.runtime.errors import PacelineError

__all__ = ["FrameFile", "Spool", "SpoolError", "read_spool", "spool_parts"]


_T = TypeVar("_T", bound=msgspec.Struct)
_LENGTH = struct.Struct("<I")


class SpoolError(PacelineError):
    """A file holds something that is no record of its kind."""


class Spool:
    """A file of records: of each its length (4 bytes, little-endian) and then the record as msgpack.

    With `keep`, the file is bounded: once it holds `keep` records it becomes the older of two parts, in place of the
    one before, and a new one begins. So the newest `keep` records are always there, and at most twice as many.
    """

    def __init__(self, path: Path, keep: int | None = None, flush_every: int = 1) -> None:
        """`flush_every`: how many records go to the operating system at once; a killed process loses fewer. Raises
        `OSError`."""
        self.path = path
        self._keep, self._flush_every = keep, flush_every
        self._encoder = msgspec.msgpack.Encoder()
        self._waiting: list[bytes] = []
        self._count = 0
        _older(path).unlink(missing_ok=True)
        self._file = path.open("wb", buffering=0)

    def write(self, record: msgspec.Struct) -> None:
        """Append a record. Raises `OSError`."""
        data = self._encoder.encode(record)
        self._waiting.append(_LENGTH.pack(len(data)) + data)
        self._count += 1
        if len(self._waiting) >= self._flush_every:
            self.flush()
        if self._count == self._keep:
            self.flush()
            self._file.close()
            os.replace(self.path, _older(self.path))
            self._file = self.path.open("wb", buffering=0)
            self._count = 0

    def flush(self) -> None:
        """Hand all records to the operating system. Raises `OSError` that names the file."""
        data = b"".join(self._waiting)
        self._waiting.clear()
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def close(self) -> None:
        """Write what is left and close the file; may be called again. Raises `OSError`."""
        if not self._file.closed:
            try:
                self.flush()
            finally:
                self._file.close()


def spool_parts(path: Path) -> tuple[Path, Path]:
    """The two files of a spool, older records first; either may be missing."""
    return _older(path), path


def read_spool(path: Path, kind: type[_T], keep: int | None = None) -> list[_T]:
    """The records of a spool, of a bounded one the newest `keep`; none where there is no file.

    A last record that is cut off, which a killed process leaves, is left out. Raises `SpoolError` where another is no
    record of this kind, and `OSError`.
    """
    records = [record for part in spool_parts(path) for record in _records(part, kind)]
    return records if keep is None else records[-keep:]


def _records(path: Path, kind: type[_T]) -> Iterator[_T]:
    decoder = msgspec.msgpack.Decoder(kind)
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        left = os.fstat(file.fileno()).st_size
        while left >= _LENGTH.size:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            left -= _LENGTH.size + length
            if left < 0:
                return
            try:
                yield decoder.decode(file.read(length))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise SpoolError(f"{path}: holds what is no {kind.__name__} ({error})") from error


def _older(path: Path) -> Path:
    return path.with_name(f"{path.name}.older")


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
