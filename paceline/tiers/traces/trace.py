"""A trace in memory: blocks, and step by step the attention mass that fell on them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import DTypeLike, NDArray

from paceline import versions
from paceline.tiers.block_stats import Floats, Ints
from paceline.tiers.traces.format import (
    BLOCKS,
    DROP,
    MASSES,
    Kind,
    TraceError,
    TraceHeader,
    TraceWriter,
    decode,
    read_records,
)

__all__ = ["BlockTable", "Call", "Step", "Trace", "read_trace", "write_trace"]


@dataclass(frozen=True, slots=True)
class BlockTable:
    """What the blocks of a trace are, by their number: columns `[n]`."""

    session: Ints
    layer: NDArray[np.int32]
    start: Ints
    place: NDArray[np.int32]
    sink: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.session)


@dataclass(frozen=True, slots=True)
class Call:
    """One pass of attention of a session in a layer: numbers and masses `[n]` of the blocks that it read."""

    session: int
    layer: int
    length: int
    blocks: Ints
    masses: Floats


@dataclass(frozen=True, slots=True)
class Step:
    """All calls of a step, and the blocks that are freed after it."""

    number: int
    calls: Sequence[Call]
    dropped: Ints


@dataclass(frozen=True, slots=True)
class Trace:
    """A whole trace. A block lives from the step of its first call until it is dropped."""

    header: TraceHeader
    blocks: BlockTable
    steps: Sequence[Step]

    def live(self) -> int:
        """How many blocks there are at most at a time."""
        born, most, now = np.zeros(len(self.blocks), dtype=bool), 0, 0
        for step in self.steps:
            for call in step.calls:
                now += int(np.count_nonzero(~born[call.blocks]))
                born[call.blocks] = True
            most = max(most, now)
            now -= len(step.dropped)
        return most


def read_trace(path: Path, partial: bool = False) -> Trace:
    """The trace in a file. `partial`: of one that was cut off, what is whole.

    Raises `TraceError` where the file is no trace, is damaged or of another version, and `OSError`.
    """
    reader = _Reader(path.name)
    with path.open("rb") as file:
        try:
            for kind, payload in read_records(file, path.name):
                reader.take(kind, payload)
        except TraceError:
            if not partial or not reader.steps:
                raise
    return reader.trace()


def write_trace(path: Path, trace: Trace) -> None:
    """Write a trace to a file, as a run records it. Raises `OSError`."""
    table = trace.blocks
    with TraceWriter(path, trace.header) as writer:
        for step in trace.steps:
            for call in step.calls:
                rows = call.blocks
                writer.record(
                    step.number, call.session, call.layer, call.length, rows, table.start[rows], call.masses,
                    table.place[rows].astype(np.int64), table.sink[rows].astype(np.int64),
                )  # fmt: skip
            writer.drop(step.number, step.dropped)


class _Reader:
    """Puts records together, and checks what they say against what came before."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._header: TraceHeader | None = None
        self._columns: list[tuple[NDArray[np.generic], ...]] = []
        self._count = 0
        self._gone: set[int] = set()
        self.steps: list[Step] = []

    def take(self, kind: Kind, payload: memoryview) -> None:
        try:
            if kind is Kind.header:
                self._take_header(payload)
            elif kind is Kind.blocks:
                self._take_blocks(payload)
            elif kind is Kind.masses:
                self._take_masses(payload)
            elif kind is Kind.drop:
                self._take_drop(payload)
        except (struct.error, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise TraceError(f"{self._name}: a record of {kind.name} is malformed: {error}") from error

    def trace(self) -> Trace:
        if self._header is None:
            raise TraceError(f"{self._name}: has no header")
        empty = tuple(np.zeros(0, dtype=kind) for kind in (np.int64, np.int32, np.int64, np.int32, np.bool_))
        columns = [np.concatenate(parts) for parts in zip(empty, *self._columns, strict=True)]
        session, layer, start, place, sink = columns
        table = BlockTable(
            session.astype(np.int64), layer.astype(np.int32), start.astype(np.int64), place.astype(np.int32),
            sink.astype(np.bool_),
        )  # fmt: skip
        return Trace(self._header, table, self.steps)

    def _take_header(self, payload: memoryview) -> None:
        version = msgspec.msgpack.decode(payload, type=dict[str, Any]).get("version")
        if version != versions.TRACE:
            raise TraceError(
                f"{self._name}: is of version {version}; this reads version {versions.TRACE}: record it anew"
            )
        self._header = msgspec.msgpack.decode(payload, type=TraceHeader)
        if self._header.span < 1 or self._header.block_bytes < 1:
            raise TraceError(f"{self._name}: span and block_bytes have to be at least 1: {self._header}")

    def _take_blocks(self, payload: memoryview) -> None:
        session, layer, n = BLOCKS.unpack_from(payload)
        start, place, sink = self._arrays(payload, BLOCKS.size, n, "<i8", "<i4", "<u1")
        self._columns.append(
            (np.full(n, session), np.full(n, layer, dtype=np.int32), start, place, sink.astype(np.bool_))
        )
        self._count += n

    def _take_masses(self, payload: memoryview) -> None:
        number, session, layer, length, n = MASSES.unpack_from(payload)
        differences, codes = self._arrays(payload, MASSES.size, n, "<i4", "<u2")
        blocks = np.cumsum(differences, dtype=np.int64)
        self._check(blocks)
        call = Call(session, layer, length, blocks, decode(codes.astype(np.uint16)).astype(np.float64))
        if self.steps and self.steps[-1].number > number:
            raise TraceError(f"{self._name}: step {number} comes after step {self.steps[-1].number}")
        if self.steps and self.steps[-1].number == number and not len(self.steps[-1].dropped):
            last = self.steps.pop()
            self.steps.append(Step(number, [*last.calls, call], last.dropped))
        else:
            self.steps.append(Step(number, [call], np.zeros(0, dtype=np.int64)))

    def _take_drop(self, payload: memoryview) -> None:
        _, n = DROP.unpack_from(payload)
        (blocks,) = self._arrays(payload, DROP.size, n, "<u4")
        gone = blocks.astype(np.int64)
        self._check(gone)
        self._gone.update(gone.tolist())
        if not self.steps:
            raise TraceError(f"{self._name}: blocks are dropped before there was a step")
        last = self.steps.pop()
        self.steps.append(Step(last.number, last.calls, np.concatenate([last.dropped, gone])))

    def _check(self, blocks: Ints) -> None:
        """Blocks of a record: there, not gone, and each once."""
        if len(blocks) and not (blocks.min() >= 0 and blocks.max() < self._count):
            raise TraceError(f"{self._name}: a record names a block that was not introduced")
        if len(np.unique(blocks)) != len(blocks) or not self._gone.isdisjoint(blocks.tolist()):
            raise TraceError(f"{self._name}: a record names a block twice, or one that was dropped")

    def _arrays(self, payload: memoryview, offset: int, n: int, *kinds: DTypeLike) -> list[NDArray[np.generic]]:
        sizes = [n * np.dtype(kind).itemsize for kind in kinds]
        if len(payload) != offset + sum(sizes):
            raise TraceError(f"{self._name}: a record for {n} blocks has {len(payload)} bytes")
        ends = np.cumsum([offset, *sizes]).tolist()
        return [np.frombuffer(payload[a:b], dtype=kind) for (a, b), kind in zip(pairwise(ends), kinds, strict=True)]
