"""Journals are read back, and anything else is refused with its line."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from paceline.launch.errors import ArgumentError
from paceline.launch.journal import read_journal
from paceline.runtime.result import Decision

DECISIONS = [Decision(0, 3, "fewer_steps", 1), Decision(1, 5, "repeat", 2)]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(decision) + b"\n" for decision in DECISIONS))
    assert read_journal(path) == DECISIONS


def test_a_run_without_decisions_leaves_an_empty_journal(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").touch()
    assert read_journal(tmp_path / "journal.jsonl") == []


@pytest.mark.parametrize("line", [b"{", b"[1]", b'{"session": "x"}', b'{"session": 0, "frame": 1}', b"\xff"])
def test_another_file_is_refused(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(msgspec.json.encode(DECISIONS[0]) + b"\n" + line)
    with pytest.raises(ArgumentError, match=r"journal.jsonl:2: is no decision"):
        read_journal(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="No such file"):
        read_journal(tmp_path / "none")
