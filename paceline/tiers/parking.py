"""Sessions that sleep in a file: written by one process, taken up by another, of the same model, layout and rank.

The file: magic, length and CRC-32C of a JSON header, the header, the CRC-32C of every block, then the blocks, those of
all layers for each position range, keys before values. It is written beside its name and renamed when it is complete.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
import torch

from paceline.tiers.checksum import Sealed, Versioned, crc32c
from paceline.tiers.errors import StoreError
from paceline.tiers.io_threads import IOThreads
from paceline.tiers.manager import TierManager
from paceline.tiers.paged_kv import PagedKV
from paceline.tiers.settings import TierSettings
from paceline.tiers.store_file import Fingerprint
from paceline.versions import PARKED_KV

__all__ = ["park", "parked_fingerprint", "unpark"]


class _Header(Versioned, frozen=True, forbid_unknown_fields=True):
    fingerprint: Fingerprint
    length: int
    blocks: int
    """Of each layer."""
    sums: int
    """CRC-32C of the table of checksums."""
    note: bytes


_HEAD = Sealed(b"PACELINE-PARKED\x00", _Header, PARKED_KV, 1 << 26, "parked session", "start the session anew")


def park(kv: PagedKV, path: Path, note: bytes = b"", beat: Callable[[], None] = lambda: None) -> int:
    """Write a sequence to a file, and a note with it (its tokens, its seed); gives the bytes of the file. `beat` is
    called for each position range.

    The sequence stays as it is; close it to free its memory. Raises `StoreError` where the file can't be written or
    would leave less than the watermark free, and `BlockLost`; then there is no file, and an older one stays.
    """
    manager = kv.manager
    count = manager.layout.blocks(kv.length)
    size = manager.layout.layers * count * manager.layout.block_nbytes
    threads = IOThreads(1, manager.settings.deadline_s, name="parking")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        room = os.statvfs(path.parent)
        if room.f_bavail * room.f_frsize - size < manager.settings.watermark:
            raise StoreError(
                f"parking {size} bytes at {path} would leave less than the watermark of {manager.settings.watermark} "
                "bytes free; free space there or park elsewhere"
            )
        with temporary.open("wb", buffering=0) as file:
            sums: np.ndarray[tuple[int], np.dtype[np.uint32]] = np.zeros(manager.layout.layers * count, dtype="<u4")
            begin = len(_head(kv, count, sums, note)) + sums.nbytes
            file.seek(begin)
            for number in range(count):
                beat()
                data = _bytes(manager, kv, number)
                for layer, block in enumerate(data):
                    sums[number * len(data) + layer] = crc32c(block)
                _timed(threads, lambda data=data: _write(file, b"".join(data)), path, "write")  # type: ignore[misc]
            file.seek(0)
            _timed(threads, lambda: _write(file, _head(kv, count, sums, note) + sums.tobytes()), path, "write")
            _timed(threads, lambda: os.fsync(file.fileno()), path, "write")
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StoreError(f"parking at {path} failed: {error.strerror or error}; the session goes on") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        threads.close()
    return begin + size


def unpark(
    manager: TierManager, path: Path, session: int | None = None, beat: Callable[[], None] = lambda: None
) -> tuple[PagedKV, bytes]:
    """Take up a parked sequence; gives it and its note. The file stays.

    Raises `StoreError` for a file that is missing, damaged anywhere, cut short, of another version, or of another
    model, layout or rank, and `TierFull`; nothing of the sequence is left then.
    """
    threads = IOThreads(1, manager.settings.deadline_s, name="parking")
    kv: PagedKV | None = None
    try:
        with _opened(path) as file:
            header, sums = _read_head(file, path, threads)
            if header.fingerprint != manager.fingerprint:
                raise StoreError(f"{path} holds KV of {manager.fingerprint.differences(header.fingerprint)}")
            kv = PagedKV(manager, session)
            layout = manager.layout
            nbytes = layout.block_nbytes
            shape = (2, layout.heads, layout.block_size, layout.head_dim)
            for number in range(header.blocks):
                beat()
                data = _read(file, layout.layers * nbytes, path, threads)
                kv.reserve(min((number + 1) * layout.block_size, header.length))
                for layer in range(layout.layers):
                    block = data[layer * nbytes : (layer + 1) * nbytes]
                    if crc32c(bytes(block)) != sums[number * layout.layers + layer]:
                        raise StoreError(f"{path}: block {number} of layer {layer} has a wrong CRC-32C; start anew")
                    pair = torch.frombuffer(bytearray(block), dtype=layout.dtype).view(shape).to(manager.device)
                    kv.write(layer, number * layout.block_size, pair[0], pair[1])
                kv.length = min((number + 1) * layout.block_size, header.length)
            found, kv = kv, None
            return found, header.note
    except OSError as error:
        raise StoreError(f"taking up {path} failed: {error.strerror or error}") from error
    finally:
        if kv is not None:
            kv.close()
        threads.close()


def parked_fingerprint(path: Path) -> Fingerprint:
    """Whose KV a file holds. Raises `StoreError` where it is missing or its header is damaged."""
    threads = IOThreads(1, TierSettings().deadline_s, name="parking")
    try:
        with _opened(path) as file:
            return _read_head(file, path, threads)[0].fingerprint
    except OSError as error:
        raise StoreError(f"reading {path} failed: {error.strerror or error}") from error
    finally:
        threads.close()


def _opened(path: Path) -> BinaryIO:
    # Not blocking, as a pipe by that name would.
    return open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))


def _head(kv: PagedKV, count: int, sums: np.ndarray[tuple[int], np.dtype[np.uint32]], note: bytes) -> bytes:
    crc = crc32c(sums.tobytes())
    header = _Header(PARKED_KV, kv.manager.fingerprint, kv.length, count, crc, note)
    # Of one length whatever the checksum, so that it can be written last.
    return _HEAD.pack(header, len(msgspec.json.encode(header)) + 10 - len(str(crc)))


def _read_head(
    file: BinaryIO, path: Path, threads: IOThreads
) -> tuple[_Header, np.ndarray[tuple[int], np.dtype[np.uint32]]]:
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise StoreError(f"{path} is no file")
    header = _HEAD.unpack(lambda size: _read(file, size, path, threads, short=True), str(path))
    found = os.fstat(file.fileno())
    count = 4 * header.fingerprint.layers * header.blocks
    if min(header.fingerprint.layers, header.blocks) < 0 or file.tell() + count > found.st_size:
        raise StoreError(f"{path} ends too soon; it was cut after it was written: {_HEAD.remedy}")
    most = header.blocks * header.fingerprint.block_size
    if not most - header.fingerprint.block_size < header.length <= most:
        raise StoreError(f"{path} says that {header.blocks} blocks hold {header.length} positions; {_HEAD.remedy}")
    table = _read(file, count, path, threads)
    if crc32c(table) != header.sums:
        raise StoreError(f"the checksums of {path} are damaged; start the session anew")
    return header, np.frombuffer(table, dtype="<u4")


def _bytes(manager: TierManager, kv: PagedKV, number: int) -> list[bytes]:
    """The blocks of all layers at one number, as they were written. Raises `BlockLost`."""
    keys, values = manager.fetch(kv.blocks(number))
    pairs = torch.stack([keys, values], dim=1).cpu()
    return [pair.reshape(-1).view(torch.uint8).numpy().tobytes() for pair in pairs]


def _write(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _read(file: BinaryIO, size: int, path: Path, threads: IOThreads, short: bool = False) -> bytes:
    """So many bytes; fewer at the end of the file only where they may be `short`."""
    parts: list[bytes] = []

    def call() -> None:
        left = size
        while left:
            part = file.read(left)
            if not part and short:
                return
            if not part:
                raise StoreError(f"{path} ends too soon; it was cut after it was written: {_HEAD.remedy}")
            parts.append(part)
            left -= len(part)

    _timed(threads, call, path, "read")
    return b"".join(parts)


def _timed(threads: IOThreads, call: Callable[[], object], path: Path, kind: str) -> None:
    """Make a call on a thread. Raises what it raises, and `StoreError` where it doesn't come back."""

    def run() -> None:
        call()

    task = threads.submit(run)
    if not threads.wait(task):
        raise StoreError(f"a {kind} of {path} has not come back in {threads.deadline_s:g} s")
    if task.error is not None:
        raise task.error
