"""The file of a store: a header that says whose it is, and slots behind it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import mmap
import os
from pathlib import Path

from paceline.tiers.errors import StoreError
from paceline.tiers.fingerprint import Fingerprint
from paceline.tiers.sealed import Sealed, Versioned

__all__ = ["PAGE", "StoreFile", "read_header", "write_header"]

PAGE = 4096
"""What slots and buffers are aligned to, as O_DIRECT wants it; also the size of the header."""

_VERSION = 1
_MOST_FILES = 64


class _Header(Versioned, frozen=True, forbid_unknown_fields=True):
    stride: int
    slots: int
    fingerprint: Fingerprint


_HEAD = Sealed(b"PACELINE-KV\x00", _Header, _VERSION, PAGE, "file of KV blocks", "move it away or name another folder")


class StoreFile:
    """An open file of `slots` slots of `stride` bytes each, which this process holds locked."""

    def __init__(self, path: Path, descriptor: int, direct: bool, stride: int, slots: int) -> None:
        self.path, self.direct, self.stride, self.slots = path, direct, stride, slots
        self._descriptor = descriptor

    @classmethod
    def make(cls, folder: Path, fingerprint: Fingerprint, stride: int, slots: int, watermark: int) -> StoreFile:
        """Make the file of a rank in a folder, with all its room taken at once; `watermark` bytes of the file system
        stay free, and there are fewer slots where it has not so much room.

        Its name holds the fingerprint; a file of that name that another process left behind is taken over, one that
        another process uses is let alone. Raises `StoreError` where the folder can't be written, and where a file of
        that name is of another model, layout or rank.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path, descriptor = _locked(folder, fingerprint)
        except OSError as error:
            raise StoreError(f"nvme: {folder}: {error.strerror or error}; name a folder that can be written") from error
        try:
            slots = _allocate(descriptor, stride, slots, watermark)
            write_header(descriptor, fingerprint, stride, slots)
            direct = _reopened(path)
        except OSError as error:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise StoreError(f"nvme: {path}: {error.strerror or error}; see that the disk works") from error
        except BaseException:
            os.close(descriptor)
            raise
        if direct is not None:
            # The lock belongs to the first description, so it stays open.
            file = cls(path, direct, True, stride, slots)
            file._lock = descriptor
            return file
        return cls(path, descriptor, False, stride, slots)

    _lock: int | None = None

    def read(self, slot: int, into: memoryview) -> None:
        """Fill a buffer from a slot on. Raises `OSError`, and `EOFError` where the file ends before."""
        done, offset = 0, PAGE + slot * self.stride
        while done < len(into):
            count = os.preadv(self._descriptor, [into[done:]], offset + done)
            if not count:
                raise EOFError(f"{self.path} ends at {offset + done} bytes; it was cut after it was made")
            done += count

    def write(self, slot: int, data: memoryview) -> None:
        """Write a buffer from a slot on. Raises `OSError`."""
        done, offset = 0, PAGE + slot * self.stride
        while done < len(data):
            count = os.pwritev(self._descriptor, [data[done:]], offset + done)
            if not count:
                raise OSError(errno.ENOSPC, "nothing was written")
            done += count

    def close(self) -> None:
        """Remove the file. What a hung call still holds is freed when it ends."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        for descriptor in (self._descriptor, self._lock):
            if descriptor is not None:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        self._descriptor, self._lock = -1, None


def write_header(descriptor: int, fingerprint: Fingerprint, stride: int, slots: int) -> None:
    """Write the header page (see `sealed.py`)."""
    page = _HEAD.pack(_Header(_VERSION, stride, slots, fingerprint))
    if len(page) > PAGE:
        raise StoreError(f"the name of the model has {len(fingerprint.model)} letters; take one below 2000")
    data = memoryview(page.ljust(PAGE, b"\x00"))
    done = 0
    while done < PAGE:
        done += os.pwrite(descriptor, data[done:], done)


def read_header(descriptor: int, path: Path) -> tuple[Fingerprint, int, int]:
    """Fingerprint, stride and slots of a file. Raises `StoreError` where it is none of ours, damaged or of another
    version."""
    page = io.BytesIO(os.pread(descriptor, PAGE, 0))
    header = _HEAD.unpack(page.read, str(path))
    if header.stride < 1 or header.stride % PAGE or header.slots < 0:
        raise StoreError(f"{path} says that it has {header.slots} slots of {header.stride} bytes; {_HEAD.remedy}")
    return header.fingerprint, header.stride, header.slots


def _locked(folder: Path, fingerprint: Fingerprint) -> tuple[Path, int]:
    """The first file name that nobody else uses, open and locked; whose it is was checked."""
    for number in range(_MOST_FILES):
        path = folder / f"kv-{fingerprint.digest[:12]}-rank{fingerprint.rank}-{number}.store"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            if os.fstat(descriptor).st_size:
                found, _, _ = read_header(descriptor, path)
                if found != fingerprint:
                    raise StoreError(f"{path} holds KV of {fingerprint.differences(found)}; move it away")
            return path, descriptor
        except StoreError:
            os.close(descriptor)
            raise
    raise StoreError(f"{folder} has {_MOST_FILES} stores of this rank in use; name another folder")


def _allocate(descriptor: int, stride: int, slots: int, watermark: int) -> int:
    """Take the room of as many slots as fit. Raises `OSError` where not even the header fits."""
    held = os.fstat(descriptor).st_blocks * 512
    system = os.fstatvfs(descriptor)
    room = system.f_bavail * system.f_frsize + held - watermark - PAGE
    slots = min(slots, max(room, 0) // stride)
    while True:
        try:
            os.posix_fallocate(descriptor, 0, PAGE + slots * stride)
            os.ftruncate(descriptor, PAGE + slots * stride)
            return slots
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or not slots:
                raise
            os.ftruncate(descriptor, PAGE)
            slots //= 2


def _reopened(path: Path) -> int | None:
    """The file opened for O_DIRECT; None where the file system doesn't take it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:
        return None
    with mmap.mmap(-1, PAGE) as page:
        try:
            if os.preadv(descriptor, [page], 0) == PAGE and os.pwritev(descriptor, [page], 0) == PAGE:
                return descriptor
        except OSError:
            pass
    os.close(descriptor)
    return None
