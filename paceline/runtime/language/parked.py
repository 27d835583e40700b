"""Sessions that a generation left in a folder, for a later one to go on with.

`FOLDER/session-N/session.json` says what a session was, `kv-R.parked` beside it is the KV of rank R of the verifiers,
all positions but the last one. The first is written last: without it there is no session.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

__all__ = ["ParkedSession", "ParkingError", "kv_file", "note_of", "read_parked", "session_folder", "write_parked"]

_VERSION = 1
_FILE = "session.json"
_PREFIX = "session-"


class ParkingError(ValueError):
    """A folder holds no sessions that can be taken up. The message says what to do."""


class ParkedSession(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a session beside its KV."""

    number: int
    seed: int
    """The session's own: with it, what comes next is what would have come next."""
    tokens: list[int]
    """All of them, its prompt included."""
    finish_reason: str
    ranks: int
    """Of the verifiers that parked KV."""
    version: int = _VERSION


def session_folder(folder: Path, number: int) -> Path:
    """Where a session of a parking folder lies."""
    return folder / f"{_PREFIX}{number}"


def kv_file(session: Path, rank: int) -> Path:
    """The KV of one rank of the verifiers."""
    return session / f"kv-{rank}.parked"


def note_of(tokens: Sequence[int]) -> bytes:
    """What is written with the KV of these tokens, so that it is never taken for that of others."""
    return hashlib.sha256(np.asarray(tokens, dtype="<i8").tobytes()).digest()


def write_parked(folder: Path, session: ParkedSession) -> None:
    """Say that a session's KV is complete. Raises `OSError`."""
    path = session_folder(folder, session.number) / _FILE
    temporary = path.with_name(f".{_FILE}.{os.getpid()}")
    try:
        temporary.write_bytes(msgspec.json.encode(session))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_parked(folder: Path) -> list[tuple[Path, ParkedSession]]:
    """The sessions of a folder by their numbers, each with its own folder. Raises `ParkingError`."""
    try:
        files = [entry / _FILE for entry in folder.iterdir() if entry.name.startswith(_PREFIX)]
        found = [(file.parent, _decoded(file)) for file in files if file.is_file()]
    except OSError as error:
        raise ParkingError(f"{folder}: {error.strerror or error}; name a folder that --park wrote") from error
    if not found:
        raise ParkingError(f"{folder}: holds no parked session; name a folder that --park wrote")
    return sorted(found, key=lambda pair: pair[1].number)


def _decoded(file: Path) -> ParkedSession:
    try:
        session = msgspec.json.decode(file.read_bytes(), type=ParkedSession)
    except msgspec.MsgspecError as error:
        raise ParkingError(f"{file}: can't be read ({error}); remove {file.parent}") from error
    if session.version != _VERSION or not session.tokens:
        raise ParkingError(f"{file}: of version {session.version}, not {_VERSION}; remove {file.parent}")
    return session
