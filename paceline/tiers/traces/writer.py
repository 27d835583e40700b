"""Writing a trace while a run goes on."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import msgspec
import numpy as np

from paceline.tiers.block_stats import Floats, Ints
from paceline.tiers.traces.format import BLOCKS, DROP, MAGIC, MASSES, Kind, TraceHeader, encode, write_record

__all__ = ["TraceWriter"]


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
