"""What is written for others to read says of which version it is; what is read is of a version that is known."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from paceline import versions
from paceline.launch.summary import check_version
from paceline.pipeline.load import load_topology
from paceline.pipeline.problem import TopologyError
from paceline.runtime.errors import WireError
from paceline.runtime.journal import JournalError, decode_decision, encode_decision
from paceline.runtime.language.parked import ParkedSession, ParkingError, read_parked, write_parked
from paceline.runtime.result import Decision
from paceline.runtime.wire import MAGIC, Control, decode, encode
from paceline.tiers.checksum import crc32c
from paceline.tiers.errors import StoreError
from paceline.tiers.parking import park, parked_fingerprint
from paceline.tiers.store_file import PAGE, fingerprint, read_header, write_header
from paceline.tiers.traces.format import MAGIC as TRACE_MAGIC
from paceline.tiers.traces.format import Kind, TraceError, TraceHeader, write_record
from paceline.tiers.traces.trace import read_trace
from tests.faults.tiers import LAYOUT, Session
from tests.harness import ROOT
from tests.launch.test_cli import invoke
from tests.tiers.managers import manager_of

WORLD, LANGUAGE = "topologies/world-1.yaml", "topologies/speculate-2.yaml"


@pytest.mark.parametrize("command", [("validate", WORLD), ("plan", WORLD), ("plan", LANGUAGE)])
def test_json_outputs_carry_their_version(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    code, output, errors = invoke(*command, "--json")
    assert code == 0, errors
    assert json.loads(output)["version"] == 1


@pytest.mark.parametrize(("version", "code"), [(None, 0), (1, 0), (2, 2), ("1", 2)])
def test_a_measured_summary_is_of_a_known_version(version: object, code: int, tmp_path: Path) -> None:
    file = tmp_path / "summary.json"
    fields = {} if version is None else {"version": version}
    file.write_text(json.dumps({**fields, "stage_ms": {"steps": 2.0}}))
    found, output, errors = invoke("plan", str(ROOT / WORLD), "--measured", str(file))
    assert found == code, output + errors
    assert ("and this Paceline reads 1; use the one that wrote it" in errors) == (code == 2)


@pytest.mark.parametrize(("line", "code"), [("", 0), ("version: 1\n", 0), ("version: 2\n", 2), ("version: '1'\n", 2)])
def test_a_topology_is_of_a_known_version(line: str, code: int, tmp_path: Path) -> None:
    text = (ROOT / WORLD).read_text()
    assert "version: 1\n" in text
    file = tmp_path / "t.yaml"
    file.write_text(text.replace("version: 1\n", line))
    found, output, errors = invoke("validate", str(file))
    assert found == code, output + errors
    if code:
        number = file.read_text().splitlines().index(line.strip()) + 1
        assert f"{file}:{number}: version: is " in output
        assert "write 1, which this Paceline reads; a file of a later version needs a later Paceline" in output


# -- every reader ------------------------------------------------------------------------------------------------------


def topology_file(folder: Path, version: int) -> None:
    file = folder / "t.yaml"
    file.write_text((ROOT / WORLD).read_text().replace("version: 1\n", f"version: {version}\n"))
    load_topology(file)


def summary_file(folder: Path, version: int) -> None:
    check_version({"version": version})


def journal_file(folder: Path, version: int) -> None:
    line = json.loads(encode_decision(Decision(0, 3, "repeat", 1)))
    decode_decision(json.dumps({**line, "version": version}).encode())


def message(folder: Path, version: int) -> None:
    sent = encode(Control("stop", 0))
    decode(sent[: len(MAGIC)] + bytes([version]) + sent[len(MAGIC) + 1 :])


def trace_file(folder: Path, version: int) -> None:
    file = folder / "t.trace"
    header = TraceHeader("t", 16, 4096, "test", version=version)
    with file.open("wb") as opened:
        opened.write(TRACE_MAGIC)
        write_record(opened, Kind.header, msgspec.msgpack.encode(header))
        write_record(opened, Kind.end, b"")
    read_trace(file)


def session_file(folder: Path, version: int) -> None:
    (folder / "session-0").mkdir()
    write_parked(folder, ParkedSession(0, 1, [1, 2], "length", 1))
    file = folder / "session-0" / "session.json"
    file.write_text(file.read_text().replace(f'"version":{versions.PARKED_SESSION},', f'"version":{version},'))
    read_parked(folder)


def resealed(data: bytes, magic: bytes, version: int) -> bytes:
    """A sealed head whose header says another version."""
    start = len(magic) + 8
    end = start + int.from_bytes(data[start - 8 : start - 4], "little")
    body = json.dumps({**json.loads(data[start:end]), "version": version}).encode().ljust(end - start)
    return magic + len(body).to_bytes(4, "little") + crc32c(body).to_bytes(4, "little") + body + data[end:]


def parked_kv(folder: Path, version: int) -> None:
    file = folder / "kv"
    with manager_of(64, layout=LAYOUT) as manager:
        session = Session(manager, 5)
        session.forward(5)
        park(session.kv, file)
    file.write_bytes(resealed(file.read_bytes(), b"PACELINE-PARKED\x00", version))
    parked_fingerprint(file)


def store_file(folder: Path, version: int) -> None:
    file = folder / "store"
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT)
    try:
        write_header(descriptor, fingerprint(LAYOUT, "model", rank=0, world=1), PAGE, 10)
        file.write_bytes(resealed(file.read_bytes(), b"PACELINE-KV\x00", version))
        read_header(descriptor, file)
    finally:
        os.close(descriptor)


READERS: dict[str, tuple[Callable[[Path, int], None], type[Exception]]] = {
    "TOPOLOGY": (topology_file, TopologyError),
    "JSON_OUTPUT": (summary_file, ValueError),
    "JOURNAL": (journal_file, JournalError),
    "WIRE": (message, WireError),
    "TRACE": (trace_file, TraceError),
    "PARKED_SESSION": (session_file, ParkingError),
    "PARKED_KV": (parked_kv, StoreError),
    "KV_STORE": (store_file, StoreError),
}


def test_there_is_a_reader_of_every_version() -> None:
    assert sorted(READERS) == versions.__all__


@pytest.mark.parametrize("name", READERS)
def test_a_later_version_is_refused_by_number(name: str, tmp_path: Path) -> None:
    read, error = READERS[name]
    known: int = getattr(versions, name)
    for number, version in enumerate((known, known + 6)):
        folder = tmp_path / str(number)
        folder.mkdir()
        if version == known:
            read(folder, version)
            continue
        with pytest.raises(error) as caught:
            read(folder, version)
        said = str(caught.value)
        assert str(version) in said and str(known) in said and "version" in said
