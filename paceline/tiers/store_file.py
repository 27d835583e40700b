"""Whose KV a file holds: a file of another model, layout or rank is refused by name.

The file loses its name as soon as it is open, so the system frees it when the process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import mmap
import os
import secrets
from pathlib import Path

import msgspec

from paceline.tiers.checksum import Sealed, Versioned
from paceline.tiers.errors import StoreError
from paceline.tiers.layout import Layout
from paceline.versions import KV_STORE

__all__ = ["PAGE", "Fingerprint", "StoreFile", "fingerprint", "read_header", "write_header"]


class Fingerprint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What has to be equal for KV to mean the same."""

    model: str
    """Name or hash of the weights."""
    layers: int
    heads: int
    block_size: int
    head_dim: int
    dtype: str
    rank: int
    world: int
    """Ranks that the model is spread over."""

    @property
    def digest(self) -> str:
        """SHA-256, hexadecimal."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()

    def differences(self, other: Fingerprint) -> str:
        """What differs, in words; empty where nothing does."""
        found = [
            f"{name} {getattr(other, name)}, not {getattr(self, name)}"
            for name in self.__struct_fields__
            if getattr(other, name) != getattr(self, name)
        ]
        return "; ".join(found)


def fingerprint(layout: Layout, model: str = "", rank: int = 0, world: int = 1) -> Fingerprint:
    """The fingerprint of a rank's KV."""
    dtype = str(layout.dtype).removeprefix("torch.")
    return Fingerprint(model, layout.layers, layout.heads, layout.block_size, layout.head_dim, dtype, rank, world)


PAGE = 4096
"""What slots and buffers are aligned to, as O_DIRECT wants it; also the size of the header."""


class _Header(Versioned, frozen=True, forbid_unknown_fields=True):
    stride: int
    slots: int
    fingerprint: Fingerprint


_HEAD = Sealed(b"PACELINE-KV\x00", _Header, KV_STORE, PAGE, "file of KV blocks", "move it away or name another folder")


class StoreFile:
    """An open file of `slots` slots of `stride` bytes each, without a name in its folder."""

    def __init__(self, path: Path, descriptor: int, direct: bool, stride: int, slots: int) -> None:
        self.path, self.direct, self.stride, self.slots = path, direct, stride, slots
        """`path`: the name that the file had, for messages."""
        self._descriptor = descriptor

    @classmethod
    def make(cls, folder: Path, fingerprint: Fingerprint, stride: int, slots: int, watermark: int) -> StoreFile:
        """Make the file of a rank in a folder, with all its room taken at once; `watermark` bytes of the file system
        stay free, and there are fewer slots where it has not so much room. Files that other versions, or a process
        killed within this call, left in the folder are removed.

        Raises `StoreError` where the folder can't be written or the disk fails.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _remove_leftovers(folder)
            path, descriptor = _created(folder, fingerprint)
        except OSError as error:
            raise StoreError(f"nvme: {folder}: {error.strerror or error}; name a folder that can be written") from error
        try:
            slots = _allocate(descriptor, stride, slots, watermark)
            write_header(descriptor, fingerprint, stride, slots)
            direct = _reopened(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise StoreError(f"nvme: {path}: {error.strerror or error}; see that the disk works") from error
        except BaseException:
            os.close(descriptor)
            raise
        if direct is not None:
            os.close(descriptor)
            return cls(path, direct, True, stride, slots)
        return cls(path, descriptor, False, stride, slots)

    @property
    def open_path(self) -> Path:
        """Where this process finds the open file."""
        return _open_path(self._descriptor)

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
        """Let go of the file. What a hung call still holds is freed when it ends."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
        self._descriptor = -1


def write_header(descriptor: int, fingerprint: Fingerprint, stride: int, slots: int) -> None:
    """Write the header page (see `sealed.py`)."""
    page = _HEAD.pack(_Header(KV_STORE, stride, slots, fingerprint))
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


def _created(folder: Path, fingerprint: Fingerprint) -> tuple[Path, int]:
    """A new file that only this user can read, open, and without its name again. No link is followed."""
    path = folder / f"kv-{fingerprint.digest[:12]}-rank{fingerprint.rank}-{secrets.token_hex(8)}.store"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    path.unlink(missing_ok=True)
    return path, descriptor


def _remove_leftovers(folder: Path) -> None:
    """Remove stores of ours that no process uses. Those of earlier versions are locked where they are in use; one
    that is being made has no header yet."""
    for path in folder.glob("kv-*.store"):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            read_header(descriptor, path)
            path.unlink(missing_ok=True)
        except (OSError, StoreError):
            pass  # in use, or none of ours
        finally:
            os.close(descriptor)


def _open_path(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}")


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


def _reopened(opened: int) -> int | None:
    """An open file opened once more, for O_DIRECT; None where the file system doesn't take it."""
    try:
        descriptor = os.open(_open_path(opened), os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT)
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
