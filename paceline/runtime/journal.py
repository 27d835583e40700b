"""The journal: the decisions of a run, a line each, written as they are taken.

A line is a decision as a JSON object, with the CRC-32C of it.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from paceline.runtime.errors import PacelineError
from paceline.runtime.result import JOURNAL_FILE, Decision
from paceline.runtime.spec import RunSpec
from paceline.tiers.checksum import crc32c
from paceline.versions import JOURNAL

__all__ = ["Journal", "JournalError", "decode_decision", "encode_decision", "read_decisions"]

_Natural = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class JournalError(PacelineError):
    """A line is no decision, or is damaged."""


class _Version(msgspec.Struct, frozen=True):
    version: int = JOURNAL


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    session: _Natural
    frame: _Natural
    what: Literal["fewer_steps", "repeat"]
    value: _Natural
    crc32c: int | None = None
    """Of the decision without it; early lines have none."""
    version: int = JOURNAL


class Journal:
    """A journal that is being written: each decision is with the operating system before anything is done about it.

    Where the file takes no more, on a disk that is full, the run goes on; `unsaved` says so, and nothing more is
    written, since a journal with a gap would replay another run.
    """

    def __init__(self, path: Path) -> None:
        """Make the file, in place of one of that name. Raises `OSError`."""
        path.unlink(missing_ok=True)
        self.unsaved: list[str] = []
        self._path = path
        self._lines = 0
        self._file = path.open("xb", buffering=0)

    @classmethod
    def of_run(cls, spec: RunSpec, run_dir: Path) -> Journal:
        """The journal of a run: in its folder for outputs, which is made where it is missing, else in the run's folder.
        Raises `OSError`."""
        if spec.out is not None:
            spec.out.mkdir(parents=True, exist_ok=True)
        return cls((spec.out or run_dir) / JOURNAL_FILE)

    def add(self, decision: Decision) -> None:
        """Append a decision."""
        if self.unsaved:
            return
        line, before = encode_decision(decision), self._file.tell()
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._lines += 1
        except OSError as error:
            # A line is there whole or not at all.
            self._file.seek(before)
            self._file.truncate()
            self.unsaved.append(f"{self._path}: {error.strerror or error}; it ends after {self._lines} decisions")

    def close(self) -> None:
        """Close the file; may be called again."""
        self._file.close()


def read_decisions(path: Path) -> list[Decision]:
    """The decisions of a journal. Raises `JournalError` naming the bad line, and `OSError`."""
    decisions = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            decisions.append(decode_decision(line))
        except JournalError as error:
            raise JournalError(f"{path}:{number}: {error}") from error
    return decisions


def encode_decision(decision: Decision) -> bytes:
    """The line of a decision, with its end."""
    crc = crc32c(msgspec.json.encode(decision))
    line = _Line(decision.session, decision.frame, decision.what, decision.value, crc)  # type: ignore[arg-type]
    return msgspec.json.encode(line) + b"\n"


def decode_decision(line: bytes) -> Decision:
    """The decision of a line. Raises `JournalError`, whatever the bytes are."""
    try:
        # The version first: another one may have other fields.
        version = msgspec.json.decode(line, type=_Version).version
        if version != JOURNAL:
            raise JournalError(f"is of version {version}, and this Paceline reads {JOURNAL}")
        found = msgspec.json.decode(line, type=_Line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise JournalError(f"is no decision ({error})") from error
    decision = Decision(found.session, found.frame, found.what, found.value)
    if found.crc32c is not None and found.crc32c != crc32c(msgspec.json.encode(decision)):
        raise JournalError("is damaged, its CRC-32C is wrong")
    return decision
