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
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from paceline import versions
from paceline.tiers.block_stats import Floats, Ints

__all__ = [
    "BLOCKS",
    "DROP",
    "MAGIC",
    "MASSES",
    "Kind",
    "TraceError",
    "TraceHeader",
    "TraceWriter",
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


class _What(NamedTuple):
    """By what a block is known to be another one under the same id."""

    layer: int
    start: int
    place: int


class TraceWriter:
    """Appends calls of attention to a file, one after the other. Not thread-safe.

    Blocks are named by the run's own ids. An id that comes back for another layer, position or place is a new block,
    and the old one is dropped; where ids come back for the same, as in a pool, say `drop` when a block is freed. A
    block that several sessions share is one block, and belongs to the first of them.
    """

    def __init__(self, path: Path, header: TraceHeader) -> None:
        """Open a file for writing; one that exists is replaced. Raises `OSError`."""
        self._file = path.open("wb")
        self._file.write(MAGIC)
        write_record(self._file, Kind.header, msgspec.msgpack.encode(header))
        self._known: dict[int, tuple[int, _What]] = {}
        """By id of the run: number in the file, and what it is."""
        self._count = 0
        self._last: dict[tuple[int, int], tuple[Ints, Ints, Ints]] = {}
        """By session and layer: ids, starts and numbers of the last call, which is mostly the next one's, too."""

    def record(
        self,
        step: int,
        session: int,
        layer: int,
        length: int,
        blocks: Ints,
        starts: Ints,
        masses: Floats,
        places: Ints | None = None,
        sinks: Ints | None = None,
    ) -> None:
        """One call: the blocks `[n]` that a session read in a layer at a step, each once, and their masses `[n]`,
        averaged over heads and rows. `length` is the session's, in the units of `starts`. Where nothing is said,
        `places` are -1, and the block at position 0 is the sink. Steps never go back.

        Raises `TraceError` for masses outside of [0, 1] and `OSError`.
        """
        codes = encode(np.asarray(masses, dtype=np.float64))
        numbers = self._numbers(step, session, layer, blocks, starts, places, sinks)
        payload = (
            MASSES.pack(step, session, layer, length, len(numbers)),
            # Neighbours mostly have consecutive numbers, and differences of 1 deflate to nothing.
            np.diff(numbers, prepend=0).astype("<i4").tobytes(),
            codes.astype("<u2").tobytes(),
        )
        write_record(self._file, Kind.masses, b"".join(payload))

    def drop(self, step: int, blocks: Ints) -> None:
        """Blocks were freed after a step; ids that were never recorded are passed over."""
        known = [self._known.pop(block)[0] for block in blocks.tolist() if block in self._known]
        if known:
            self._last.clear()
            payload = DROP.pack(step, len(known)) + np.array(known, dtype="<u4").tobytes()
            write_record(self._file, Kind.drop, payload)

    def close(self) -> None:
        """Write the end record, by which a reader knows that nothing is missing."""
        if not self._file.closed:
            write_record(self._file, Kind.end, b"")
            self._file.close()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:  # no end record: the trace is not whole
            self._file.close()

    def _numbers(
        self, step: int, session: int, layer: int, blocks: Ints, starts: Ints, places: Ints | None, sinks: Ints | None
    ) -> Ints:
        """The file's numbers of blocks; those that are new are written first."""
        last = self._last.get((session, layer))
        if last is not None and np.array_equal(last[0], blocks) and np.array_equal(last[1], starts):
            return last[2]
        places = np.full(len(blocks), -1, dtype=np.int64) if places is None else places
        sinks = np.asarray(starts == 0, dtype=np.int64) if sinks is None else sinks
        whats = [_What(layer, *pair) for pair in zip(starts.tolist(), places.tolist(), strict=True)]
        held = [self._known.get(block) for block in blocks.tolist()]
        other = [known is not None and known[1] != what for known, what in zip(held, whats, strict=True)]
        if any(other):
            self.drop(step, blocks[np.array(other)])
        new = [row for row, block in enumerate(blocks.tolist()) if block not in self._known]
        if new:
            payload = (
                BLOCKS.pack(session, layer, len(new)),
                starts[new].astype("<i8").tobytes(),
                places[new].astype("<i4").tobytes(),
                np.asarray(sinks[new]).astype("<u1").tobytes(),
            )
            write_record(self._file, Kind.blocks, b"".join(payload))
            for number, row in enumerate(new, self._count):
                self._known[int(blocks[row])] = number, whats[row]
            self._count += len(new)
        numbers = np.array([self._known[block][0] for block in blocks.tolist()], dtype=np.int64)
        self._last[session, layer] = blocks.copy(), starts.copy(), numbers
        return numbers
