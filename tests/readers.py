"""Every reader of bytes that we wrote, with whole samples and the errors that it may raise."""

from __future__ import annotations

import itertools
import json
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from paceline.launch.checks import read_model_file
from paceline.launch.errors import ArgumentError, SpecError
from paceline.launch.failure import Failure
from paceline.launch.frames import read_costs
from paceline.launch.records import check_replay, read_journal
from paceline.launch.run_dir import RunDirPaths
from paceline.launch.spec_file import read_spec, write_spec
from paceline.pipeline.load import load_topology
from paceline.pipeline.speculation.window import FinishReason, SpeculationError, Verdict, Window
from paceline.runtime.errors import WireError
from paceline.runtime.journal import encode_decision
from paceline.runtime.language.messages import (
    Drafted,
    HiddenStates,
    ParkAck,
    SessionEnd,
    SessionStart,
    Settings,
    StatsReport,
    pack,
    record_of,
    unpack,
)
from paceline.runtime.language.parked import ParkedSession, ParkingError, read_parked, write_parked
from paceline.runtime.result import Decision
from paceline.runtime.spec import GenerateSpec, RunSpec
from paceline.runtime.wire import (
    MAGIC,
    Control,
    CreditReturn,
    Data,
    Goodbye,
    Hello,
    Returned,
    check_data,
    decode,
    encode,
    encode_item,
    item_from,
    read_tensors,
    tensor_bytes,
)
from paceline.stages.dit.config import DiTConfig
from paceline.stages.dit.network import save_dit
from paceline.stages.item import Item, Key
from paceline.tiers.checksum import crc32c
from paceline.tiers.errors import StoreError, TierFull
from paceline.tiers.parking import park, parked_fingerprint, unpark
from paceline.tiers.store_file import PAGE, fingerprint, read_header, write_header
from paceline.tiers.traces.format import MAGIC as TRACE_MAGIC
from paceline.tiers.traces.format import TraceError
from paceline.tiers.traces.trace import read_trace, write_trace
from paceline.versions import WIRE
from tests.faults.tiers import LAYOUT, Session
from tests.harness import ROOT
from tests.stages.conftest import random_model
from tests.tiers.managers import manager_of
from tests.tiers.traces.small import trace_of

Wrap = Callable[[bytes], bytes]


@dataclass
class Reader:
    """What is fuzzed: a reader, whole samples, the errors that it may raise; `wrap` puts a checksum around `bodies`."""

    read: Callable[[bytes], object]
    samples: Sequence[bytes]
    errors: type[BaseException] | tuple[type[BaseException], ...]
    wrap: Wrap | None = None
    bodies: Sequence[bytes] = ()
    share: float = 1.0
    """Of the mutations: less where one takes long"""


def file_reader(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def call(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return call


def wire(folder: Path) -> Reader:
    item = Item(
        Key(3, 2**40, 17, 5), (torch.arange(6).reshape(2, 3), torch.ones(()), torch.tensor([True])), {"k": 1.5}, 2
    )
    frame, tensors = encode_item(item, 4, checksum_limit=1 << 20)
    buffers = [bytes(tensor_bytes(tensor)) for tensor in tensors]
    frames = [
        frame, encode(CreditReturn((Returned(1, 2, 3, 4),))), encode(Control("stop", 0)), encode(Hello(1, "d")),
        encode(Goodbye("why")),
    ]  # fmt: skip

    def read(data: bytes) -> None:
        message = decode(data)
        if isinstance(message, Data):
            check_data(message, [len(buffer) for buffer in buffers], 1 << 20)
            item_from(message, read_tensors(message, buffers))

    prefix = MAGIC + bytes([WIRE])
    return Reader(read, frames, WireError, lambda body: prefix + body, [each[len(prefix) :] for each in frames])


def messages(folder: Path) -> Reader:
    window = Window(1, 2, 3, (4, 5, 6), 1, True, 0)
    verdict = Verdict(
        session=1, epoch=2, window_start=3, length=9, forwarded=7, accepted=2, judged=3, rejected=False, closed=0,
        drafted=2, offset=0, finish=FinishReason.length, tokens=(5, 6),
    )  # fmt: skip
    batch = [
        SessionStart(0, 9, 2**40, (1, 2)), Drafted(window, torch.ones(2), torch.ones(2, 3)),
        HiddenStates(window, torch.ones(3, 4)),
        Settings(3, 2, 1, (0.5,)), SessionEnd(1, FinishReason.stop, 4, (1,)), verdict,
        StatsReport(7, ((1, 2),), ((True, 1, 2),)),
        ParkAck(1, 2),
    ]  # fmt: skip
    first, *rest = pack([record_of(message) for message in batch])

    def read(data: bytes) -> None:
        list(unpack((torch.frombuffer(bytearray(data) or bytearray(4), dtype=torch.uint8), *rest)))

    return Reader(read, [bytes(tensor_bytes(first))], SpeculationError)


def sealed(magic: bytes, rest: bytes = b"", size: int = 0) -> Wrap:
    def wrap(body: bytes) -> bytes:
        head = magic + len(body).to_bytes(4, "little") + crc32c(body).to_bytes(4, "little") + body
        return head.ljust(size, b"\x00") + rest

    return wrap


def body_of(data: bytes, magic: bytes) -> tuple[bytes, bytes]:
    """The header of a sealed file, and what is behind it."""
    begin = len(magic) + 8
    end = begin + int.from_bytes(data[begin - 8 : begin - 4], "little")
    return data[begin:end], data[end:]


def store(folder: Path) -> Reader:
    path = folder / "store"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    write_header(descriptor, fingerprint(LAYOUT, "model é", rank=1, world=2), PAGE, 10)

    def read(data: bytes) -> None:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, data, 0)
        found, stride, slots = read_header(descriptor, path)
        assert stride % PAGE == 0 and stride > 0 and slots >= 0 and isinstance(found.model, str)

    sample = path.read_bytes()
    magic = b"PACELINE-KV\x00"
    return Reader(read, [sample], StoreError, sealed(magic, size=PAGE), [body_of(sample, magic)[0]])


def parked_kv(folder: Path) -> Reader:
    path = folder / "sleeping"
    manager = stack(manager_of(64, layout=LAYOUT))
    session = Session(manager, 5)
    session.forward(5)
    park(session.kv, path, b"note")
    right = [tensor.clone() for layer in range(LAYOUT.layers) for tensor in session.kv.read(layer, 0, 5)]
    sample = path.read_bytes()

    def read(file: Path) -> None:
        kv, _ = unpark(manager, file)
        found = [tensor for layer in range(LAYOUT.layers) for tensor in kv.read(layer, 0, min(5, kv.length))]
        kv.close()
        # Wrong bytes never pass: what is taken up is what was parked.
        assert all(torch.equal(a, b[:, : a.shape[1]]) for a, b in zip(found, right, strict=True))

    magic = b"PACELINE-PARKED\x00"
    body, rest = body_of(sample, magic)
    # Each takes a thread and all blocks, so that fewer are tried: `parked_head` reads the same head.
    return Reader(file_reader(path, read), [sample], (StoreError, TierFull), sealed(magic, rest), [body], share=0.1)


def parked_head(folder: Path) -> Reader:
    reader = parked_kv(folder)
    path = folder / "sleeping"
    return Reader(file_reader(path, parked_fingerprint), reader.samples, StoreError, reader.wrap, reader.bodies)


_OPEN: list[Any] = []


def stack(context: Any) -> Any:
    """Enter a context that is left at the end of the test."""
    _OPEN.append(context)
    return context.__enter__()


def leave() -> None:
    """Leave what readers have entered."""
    while _OPEN:
        _OPEN.pop().__exit__(None, None, None)


def session_file(folder: Path) -> Reader:
    home = folder / "session-3"
    home.mkdir()
    kept = ParkedSession(3, 2**63 + 5, [1, 2, 300], "length", 2, {"temperature": 0.7, "top_k": 5.0})
    write_parked(folder, kept)
    path = home / "session.json"
    sample = path.read_bytes()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        ((_, session),) = read_parked(folder)
        assert session.seed < 2**64 and session.tokens and min(session.tokens) >= 0

    def wrap(body: bytes) -> bytes:
        return b'{"version":2,"crc32c":%d,"session":%s}' % (crc32c(body), body)

    return Reader(read, [sample], ParkingError, wrap, [msgspec.json.encode(kept)])


def trace(folder: Path) -> Reader:
    path = folder / "t.trace"
    masses = np.random.Generator(np.random.Philox(3)).random((3, 4))
    write_trace(path, trace_of(masses, 2))
    sample = path.read_bytes()
    records = []
    at = len(TRACE_MAGIC)
    while at < len(sample):
        size = int.from_bytes(sample[at : at + 4], "little")
        records.append(zlib.decompress(sample[at + 8 : at + 8 + size]))
        at += 8 + size
    turn = itertools.count()

    def framed(record: bytes) -> bytes:
        body = zlib.compress(record, 1)
        return len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little") + body

    def wrap(record: bytes) -> bytes:
        """The trace with a damaged record in place of one of its kind."""
        place = next(turn) % len(records)
        return TRACE_MAGIC + b"".join(framed(record if index == place else each) for index, each in enumerate(records))

    def read(file: Path) -> None:
        read_trace(file).live()

    return Reader(file_reader(path, read), [sample], TraceError, wrap, records)


def journal(folder: Path) -> Reader:
    path = folder / "journal.jsonl"
    taken = [Decision(0, 3, "fewer_steps", 1), Decision(1, 5, "repeat", 2), Decision(0, 9, "fewer_steps", 1)]
    topology = load_topology(ROOT / "topologies" / "world-4-mirrored.yaml")

    def read(file: Path) -> None:
        check_replay(file, read_journal(file), topology)

    bare = [msgspec.json.encode(decision) for decision in taken]
    return Reader(
        file_reader(path, read), [b"".join(map(encode_decision, taken))], ArgumentError, lambda body: body, bare
    )


def weights(folder: Path) -> Reader:
    path = folder / "w.safetensors"
    small = DiTConfig(width=6, layers=1, heads=1, time_frequencies=(1.0,), space_frequencies=(1,))
    save_dit(random_model(small), path)
    sample = path.read_bytes()
    topology = load_topology(ROOT / "topologies" / "world-1.yaml", [f"model.weights={path}"])
    config = json.dumps(asdict(small))
    size = 8 + int.from_bytes(sample[:8], "little")

    def wrap(body: bytes) -> bytes:
        """The header with another configuration, and its length put right."""
        header = json.loads(sample[8:size])
        header["__metadata__"]["dit_config"] = body.decode("latin-1")
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + sample[size:]

    return Reader(
        file_reader(path, lambda file: read_model_file(topology)), [sample], ArgumentError, wrap, [config.encode()]
    )


def spec(folder: Path) -> Reader:
    path = folder / "spec.json"
    write_spec(path, RunSpec(load_topology(ROOT / "topologies" / "world-2.yaml"), 5, 2, 7, out=Path("/x")))
    return Reader(file_reader(path, read_spec), [path.read_bytes()], SpecError)


def generate_spec(folder: Path) -> Reader:
    path = folder / "spec.json"
    topology = load_topology(ROOT / "topologies" / "speculate-2.yaml")
    write_spec(path, GenerateSpec(topology, ("a", "é"), 5, 2, stop=("x",)))
    return Reader(file_reader(path, read_spec), [path.read_bytes()], SpecError)


def failure(folder: Path) -> Reader:
    try:
        raise ValueError("why")
    except ValueError as error:
        Failure.of(1, error).write(folder)
    path = RunDirPaths(folder).failure(1)
    return Reader(file_reader(path, lambda file: Failure.read(folder, 1)), [path.read_bytes()], ())


def summary(folder: Path) -> Reader:
    topology = load_topology(ROOT / "topologies" / "world-2.yaml")
    sample = json.dumps({"stage_ms": dict.fromkeys(topology.stages, 2.5), "sessions": [{"id": 0}]}).encode()
    return Reader(
        file_reader(folder / "summary.json", lambda file: read_costs(topology, file)), [sample], ArgumentError
    )


READERS: list[Callable[[Path], Reader]] = [
    wire, messages, store, parked_head, parked_kv, session_file, trace, journal, weights, spec, generate_spec, failure,
    summary,
]  # fmt: skip
