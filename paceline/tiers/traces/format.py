"""The trace format: how the attention masses of a run lie in a file. docs/traces.md describes it for other programs.

A file is eight bytes of magic and then records: length and CRC-32 of a body (two little-endian uint32), and the body,
deflated. The first byte of a body is its kind. There is no code in it, and nothing is allocated before a length was
checked.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from enum import IntEnum
from typing import BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from paceline import versions
from paceline.tiers.block_stats import Floats

__all__ = [
    "BLOCKS",
    "DROP",
    "MAGIC",
    "MASSES",
    "Kind",
    "TraceError",
    "TraceHeader",
    "decode",
    "encode",
    "read_records",
    "write_record",
]

MAGIC = b"PCLTRACE"
BLOCKS = struct.Struct("<qiI")
"""session, layer, n; then n starts (int64), places (int32), sinks (uint8)"""
MASSES = struct.Struct("<qqiqI")
"""step, session, layer, length, n; then n differences of block numbers (int32), codes of masses (uint16)"""
DROP = struct.Struct("<qI")
"""step, n; then n block numbers (uint32)"""
_FRAME = struct.Struct("<II")
_MOST = 1 << 26
"""Bytes of one body at most, deflated or not."""
_STEPS = 65535 / 24
"""Codes per factor of two; the smallest mass that is not 0 is 2**-24."""


class TraceError(ValueError):
    """A file is no trace, or is damaged, or can't be written."""


class Kind(IntEnum):
    """What a record holds."""

    header = 0
    blocks = 1
    """blocks that are new, numbered from the file's first on"""
    masses = 2
    """one call of attention"""
    drop = 3
    """blocks that are gone"""
    end = 4
    """the recording was completed"""


class TraceHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a trace is of."""

    name: str
    """Family of a generated trace; topology and group of a recorded one."""
    span: int
    """Positions of a block: its tokens; 1 where blocks are slabs of frames."""
    block_bytes: int
    """Keys and values of one block."""
    source: str = ""
    """For people: where it comes from."""
    version: int = versions.TRACE


def encode(masses: Floats) -> NDArray[np.uint16]:
    """Masses in [0, 1] as codes: 0 for those below 2**-24, else linear in the logarithm, within 0.013 %.

    Raises `TraceError` where a mass is negative, no number, or more than a rounding error above 1.
    """
    if len(masses) and not (masses.min() >= 0 and masses.max() <= 1.001):
        raise TraceError("attention masses have to lie in [0, 1]")
    with np.errstate(divide="ignore"):
        code = np.rint(65535 + np.log2(masses, dtype=np.float64) * _STEPS)
    return np.clip(code, 0, 65535).astype(np.uint16)


_DECODED = np.exp2((np.arange(65536) - 65535) / _STEPS).astype(np.float32)
_DECODED[0] = 0


def decode(codes: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The masses of codes."""
    return _DECODED[codes]


def write_record(file: BinaryIO, kind: Kind, payload: bytes) -> None:
    """Append one record. Raises `TraceError` where it is too large."""
    if len(payload) >= _MOST:
        raise TraceError(f"a record of {len(payload)} bytes is more than a trace takes; record fewer blocks a call")
    body = zlib.compress(bytes([kind]) + payload, 1)
    file.write(_FRAME.pack(len(body), zlib.crc32(body)))
    file.write(body)


def read_records(file: BinaryIO, name: str) -> Iterator[tuple[Kind, memoryview]]:
    """Kinds and payloads of all records from the first on; checks the magic, lengths, sums and kinds.

    Raises `TraceError` at the first record that is cut off or wrong, and after the last where there is no end record.
    """
    if file.read(len(MAGIC)) != MAGIC:
        raise TraceError(f"{name}: is no trace; `paceline trace record` writes them")
    count = 0
    while frame := file.read(_FRAME.size):
        where = f"{name}: record {count}"
        if len(frame) < _FRAME.size:
            raise TraceError(f"{where} is cut off; the recording was interrupted")
        length, crc = _FRAME.unpack(frame)
        if length > _MOST:
            raise TraceError(f"{where} says that it has {length} bytes; the file is damaged")
        body = file.read(length)
        if len(body) < length:
            raise TraceError(f"{where} is cut off; the recording was interrupted")
        if zlib.crc32(body) != crc:
            raise TraceError(f"{where} has another check sum than it says; the file is damaged")
        inflater = zlib.decompressobj()
        try:
            plain = inflater.decompress(body, _MOST + 1)
        except zlib.error as error:
            raise TraceError(f"{where} can't be inflated: {error}") from error
        if not plain or len(plain) > _MOST or not inflater.eof or plain[0] not in set(Kind):
            raise TraceError(f"{where} is none of a version {versions.TRACE} trace; the file is damaged or newer")
        kind = Kind(plain[0])
        if (kind is Kind.header) != (count == 0):
            raise TraceError(f"{where}: the header has to come first, and once")
        yield kind, memoryview(plain)[1:]
        if kind is Kind.end:
            return
        count += 1
    raise TraceError(f"{name}: ends after {count} records without an end record; the recording was interrupted")
