from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.tiers.traces.format import MAGIC, Kind, TraceError, TraceHeader, TraceWriter, decode, encode, write_record
from paceline.tiers.traces.trace import Trace, read_trace, write_trace
from tests.tiers.traces.small import small_traces

HEADER = TraceHeader("t", 16, 4096)


@given(st.lists(st.floats(0, 1), max_size=20))
def test_masses_come_back_within_the_stated_error(masses: list[float]) -> None:
    given_masses = np.array(masses, dtype=np.float64)
    back = decode(encode(given_masses)).astype(np.float64)
    assert (np.abs(back - given_masses) <= np.maximum(given_masses * 1.3e-4, 2.0**-24)).all()
    assert encode(back).tolist() == encode(given_masses).tolist()


def test_the_ends_of_the_scale() -> None:
    assert encode(np.array([0.0, 2.0**-25, 1.0, 1.0005])).tolist() == [0, 0, 65535, 65535]
    assert decode(np.array([0, 65535], dtype=np.uint16)).tolist() == [0.0, 1.0]
    for wrong in (-1e-9, 1.1, np.nan):
        with pytest.raises(TraceError, match="lie in"):
            encode(np.array([0.5, wrong]))


def same(a: Trace, b: Trace) -> None:
    """Two traces are one, up to the numbers of their blocks and the coding of masses."""
    assert a.header == b.header
    assert [s.number for s in a.steps] == [s.number for s in b.steps]

    def what(trace: Trace, blocks: np.ndarray) -> list[tuple[int, ...]]:
        t = trace.blocks
        return list(zip(*(c[blocks].tolist() for c in (t.session, t.layer, t.start, t.place, t.sink)), strict=True))

    for mine, yours in zip(a.steps, b.steps, strict=True):
        assert what(a, mine.dropped) == what(b, yours.dropped)
        assert len(mine.calls) == len(yours.calls)
        for x, y in zip(mine.calls, yours.calls, strict=True):
            assert (x.session, x.layer, x.length) == (y.session, y.layer, y.length)
            assert what(a, x.blocks) == what(b, y.blocks)
            assert np.allclose(x.masses, y.masses, rtol=1.3e-4, atol=2.0**-24)


@given(trace=small_traces(layers=2))
def test_a_trace_comes_back_from_a_file(tmp_path_factory: pytest.TempPathFactory, trace: Trace) -> None:
    path = tmp_path_factory.mktemp("trace") / "t.trace"
    write_trace(path, trace)
    same(read_trace(path), trace)


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def test_ids_used_again_are_new_blocks_and_shared_ones_are_not(tmp_path: Path) -> None:
    path = tmp_path / "t.trace"
    half = np.array([0.5, 0.5])
    with TraceWriter(path, HEADER) as writer:
        writer.record(0, 7, 0, 32, ids(5, 9), ids(0, 16), half)
        writer.record(1, 8, 0, 32, ids(5, 3), ids(0, 16), half)  # 5 is shared by both sessions
        writer.record(2, 7, 1, 32, ids(9), ids(0), half[:1])  # 9 went, and came back in another layer
        writer.drop(2, ids(5, 77))
        writer.record(3, 7, 0, 32, ids(5), ids(0), half[:1], places=ids(4), sinks=ids(0))
    trace = read_trace(path)
    assert trace.blocks.session.tolist() == [7, 7, 8, 7, 7]
    assert trace.blocks.layer.tolist() == [0, 0, 0, 1, 0]
    assert trace.blocks.place.tolist() == [-1, -1, -1, -1, 4]
    assert trace.blocks.sink.tolist() == [True, False, False, True, False]
    assert [call.blocks.tolist() for step in trace.steps for call in step.calls] == [[0, 1], [0, 2], [3], [4]]
    assert [step.dropped.tolist() for step in trace.steps] == [[], [1], [0], []]
    assert trace.live() == 3


def whole(tmp_path: Path) -> Path:
    path = tmp_path / "t.trace"
    with TraceWriter(path, HEADER) as writer:
        for step in range(3):
            writer.record(step, 0, 0, 48, ids(0, 1, 2), ids(0, 16, 32), np.array([0.5, 0.25, 0.25]))
    return path


def test_any_flipped_bit_and_any_cut_is_noticed(tmp_path: Path) -> None:
    path = whole(tmp_path)
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        with pytest.raises(TraceError):
            read_trace(path)
        path.write_bytes(good[:at])
        with pytest.raises(TraceError):
            read_trace(path)
    assert len(read_trace(path, partial=True).steps) == 3
    path.write_bytes(good[: len(good) * 2 // 3])
    assert 1 <= len(read_trace(path, partial=True).steps) < 3


def test_a_recording_that_fails_is_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "t.trace"
    with pytest.raises(KeyError), TraceWriter(path, HEADER) as writer:
        writer.record(0, 0, 0, 16, ids(0), ids(0), np.array([1.0]))
        raise KeyError
    with pytest.raises(TraceError, match="interrupted"):
        read_trace(path)
    assert len(read_trace(path, partial=True).steps) == 1


def test_another_version_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.trace"
    with path.open("wb") as file:
        file.write(MAGIC)
        write_record(file, Kind.header, msgspec.msgpack.encode({"version": 2, "more": 1}))
        write_record(file, Kind.end, b"")
    with pytest.raises(TraceError, match="of version 2; this reads version 1"):
        read_trace(path)


@pytest.mark.parametrize(
    ("kind", "payload", "match"),
    [
        (Kind.masses, struct.pack("<qqiqI", 0, 0, 0, 16, 1) + struct.pack("<iH", 3, 9), "not introduced"),
        (Kind.masses, struct.pack("<qqiqI", 0, 0, 0, 16, 2**31) + b"1234", "has 36 bytes"),
        (Kind.masses, b"short", "malformed"),
        (Kind.masses, struct.pack("<qqiqI", 0, 0, 0, 16, 2) + struct.pack("<iiHH", 0, 0, 9, 9), "twice"),
        (Kind.drop, struct.pack("<qI", 0, 1) + struct.pack("<I", 0), "before there was a step"),
        (Kind.header, msgspec.msgpack.encode(HEADER), "once"),
    ],
)
def test_records_that_contradict_themselves_are_refused(tmp_path: Path, kind: Kind, payload: bytes, match: str) -> None:
    path = tmp_path / "t.trace"
    with path.open("wb") as file:
        file.write(MAGIC)
        write_record(file, Kind.header, msgspec.msgpack.encode(HEADER))
        write_record(file, Kind.blocks, struct.pack("<qiI", 0, 0, 1) + struct.pack("<qiB", 0, -1, 1))
        write_record(file, kind, payload)
        write_record(file, Kind.end, b"")
    with pytest.raises(TraceError, match=match):
        read_trace(path)


def test_a_record_that_inflates_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.trace"
    body = zlib.compress(bytes(1 << 27), 1)
    path.write_bytes(MAGIC + struct.pack("<II", len(body), zlib.crc32(body)) + body)
    with pytest.raises(TraceError, match=re.escape("record 0")):
        read_trace(path)
    path.write_bytes(b"something else")
    with pytest.raises(TraceError, match="is no trace"):
        read_trace(path)
