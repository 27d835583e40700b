"""The journal of a run, read back for a replay."""

from __future__ import annotations

from pathlib import Path

import msgspec

from paceline.launch.errors import ArgumentError
from paceline.runtime.result import Decision

__all__ = ["read_journal"]


def read_journal(path: Path) -> list[Decision]:
    """The decisions of a `journal.jsonl` that `--out` wrote. Raises `ArgumentError` naming the bad line."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        reason = error.strerror or error
        raise ArgumentError(f"{path}: can't be read: {reason}; give the journal.jsonl of an earlier --out") from error
    decisions = []
    for number, line in enumerate(lines, 1):
        try:
            decisions.append(msgspec.json.decode(line, type=Decision))
        except msgspec.DecodeError as error:
            wrong = f"{path}:{number}: is no decision ({error})"
            raise ArgumentError(f"{wrong}; give the journal.jsonl of an earlier --out, unchanged") from error
    return decisions
