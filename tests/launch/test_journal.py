"""Journals are read back, and anything else is refused with its line."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import msgspec
import pytest

from paceline.launch.errors import ArgumentError
from paceline.launch.records import check_replay, read_journal
from paceline.pipeline.load import load_topology
from paceline.runtime.journal import Journal, encode_decision
from paceline.runtime.result import Decision
from tests.harness import ROOT
from tests.launch.test_cli import invoke

DECISIONS = [Decision(0, 3, "fewer_steps", 1), Decision(1, 5, "repeat", 2)]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"".join(map(encode_decision, DECISIONS)))
    assert read_journal(path) == DECISIONS
    # As earlier versions wrote it.
    path.write_bytes(b"".join(msgspec.json.encode(decision) + b"\n" for decision in DECISIONS))
    assert read_journal(path) == DECISIONS


def test_a_changed_number_is_found(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    lines = b"".join(map(encode_decision, DECISIONS))
    for before, after in ((b'"frame":5', b'"frame":4'), (b'"value":2', b'"value":3'), (b"repeat", b"fewer_steps")):
        assert before in lines
        path.write_bytes(lines.replace(before, after))
        with pytest.raises(ArgumentError, match=r"journal.jsonl:2: is damaged, its CRC-32C is wrong"):
            read_journal(path)


def test_a_journal_that_takes_no_more_holds_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    journal = Journal(path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150, before[1]))
    try:
        for decision in DECISIONS * 3:
            journal.add(decision)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    # There is room again, but what came in between is missing.
    journal.add(DECISIONS[0])
    journal.close()
    assert read_journal(path) == DECISIONS
    (said,) = journal.unsaved
    assert said in (
        f"{path}: {why}; it ends after 2 decisions" for why in ("File too large", "No space left on device")
    )


def test_a_run_without_decisions_leaves_an_empty_journal(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").touch()
    assert read_journal(tmp_path / "journal.jsonl") == []


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[1]",
        b'{"session": "x"}',
        b'{"session": 0, "frame": 1}',
        b"\xff",
        b"[" * 100_000,
        b'{"session":-1,"frame":0,"what":"repeat","value":1}',
        b'{"session":0,"frame":0,"what":"dance","value":1}',
    ],
)
def test_another_file_is_refused(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(msgspec.json.encode(DECISIONS[0]) + b"\n" + line)
    with pytest.raises(ArgumentError, match=r"journal.jsonl:2: is no decision"):
        read_journal(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="No such file"):
        read_journal(tmp_path / "none")


def decisions(*values: tuple[int, int]) -> list[Decision]:
    return [Decision(0, frame, "fewer_steps", value) for frame, value in values]


def test_decisions_that_a_topology_can_not_take(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    four = load_topology(ROOT / "topologies" / "world-4-mirrored.yaml")
    steps = four.model.steps
    assert steps == 4 and four.context.mode == "cascade"
    check_replay(path, decisions((3, 2), (4, 1), (9, 1), (9, 1)), four)
    check_replay(path, [Decision(0, 3, "repeat", 10**9)], four)
    for wrong in (decisions((3, 4)), decisions((3, 3), (4, 1)), decisions((3, 2)), decisions((2**62, 9))):
        with pytest.raises(ArgumentError, match="can't begin frame"):
            check_replay(path, wrong, four)
    path.write_bytes(encode_decision(Decision(0, 0, "fewer_steps", 7)))
    world = str(ROOT / "topologies" / "world-1.yaml")
    code, _, errors = invoke("run", world, "--frames", "1", "--replay", str(path))
    assert (code, "can't begin frame 0 at step 7" in errors) == (2, True), errors
