"""Sessions that a generation left in a folder, for a later one to go on with.

`FOLDER/session-N/session.json` says what a session was; `kv-R-HASH.parked` beside it is the KV of rank R of the
verifiers, all positions but the last one, under a hash of its tokens. The first is written last, in one go: so a folder
holds the session as it was or as it is, whenever a run ends.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec

__all__ = ["ParkedSession", "ParkingError", "kv_file", "note_of", "parked_folders", "read_parked", "session_folder",
           "write_parked"]  # fmt: skip

_VERSION = 1
_FILE = "session.json"
_PREFIX = "session-"

_Natural = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]


class ParkingError(ValueError):
    """A folder holds no sessions that can be taken up. The message says what to do."""


class ParkedSession(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a session beside its KV."""

    number: _Natural
    seed: Annotated[int, msgspec.Meta(ge=0)]
    """The session's own: with it, what comes next is what would have come next."""
    tokens: Annotated[list[_Natural], msgspec.Meta(min_length=1)]
    """All of them, its prompt included."""
    finish_reason: str
    ranks: Annotated[int, msgspec.Meta(ge=1)]
    """Of the verifiers that parked KV."""
    sampling: dict[str, float] = {}
    """How its tokens were drawn, by option."""
    version: int = _VERSION


def session_folder(folder: Path, number: int) -> Path:
    """Where a session of a parking folder lies."""
    return folder / f"{_PREFIX}{number}"


def kv_file(session: Path, rank: int, tokens: Sequence[int]) -> Path:
    """The KV that one rank of the verifiers has of these tokens."""
    return session / f"kv-{rank}-{note_of(tokens).hex()[:16]}.parked"


def note_of(tokens: Sequence[int]) -> bytes:
    """What is written with the KV of these tokens, so that it is never taken for that of others."""
    return hashlib.sha256(array("q", tokens).tobytes()).digest()


def write_parked(folder: Path, session: ParkedSession) -> None:
    """Say that a session's KV is complete, and remove what was there of it before. Raises `OSError`."""
    home = session_folder(folder, session.number)
    temporary = home / f".{_FILE}.{os.getpid()}"
    try:
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(session))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(home / _FILE)
    finally:
        temporary.unlink(missing_ok=True)
    kept = {kv_file(home, rank, session.tokens[:-1]) for rank in range(session.ranks)}
    for old in set(home.glob("kv-*.parked")) - kept:
        old.unlink(missing_ok=True)


def parked_folders(folder: Path) -> list[Path]:
    """The folders of sessions in a parking folder, readable or not; none where there is no such folder."""
    return sorted(file.parent for file in folder.glob(f"{_PREFIX}*/{_FILE}"))


def read_parked(folder: Path) -> list[tuple[Path, ParkedSession]]:
    """The sessions of a folder by their numbers, each with its own folder. Raises `ParkingError`."""
    if not folder.is_dir():
        raise ParkingError(f"{folder}: there is no such folder; name one that --park wrote")
    try:
        found = [(each, _decoded(each / _FILE)) for each in parked_folders(folder)]
    except OSError as error:
        raise ParkingError(f"{folder}: {error.strerror or error}; name a folder that can be read") from error
    if not found:
        raise ParkingError(f"{folder}: holds no parked session; name a folder that --park wrote")
    return sorted(found, key=lambda pair: pair[1].number)


def _decoded(file: Path) -> ParkedSession:
    try:
        session = msgspec.json.decode(file.read_bytes(), type=ParkedSession)
    except msgspec.MsgspecError as error:
        raise ParkingError(f"{file}: can't be read ({error}); remove {file.parent}") from error
    if session.version != _VERSION:
        raise ParkingError(f"{file}: of version {session.version}, not {_VERSION}; remove {file.parent}")
    if file.parent != session_folder(file.parent.parent, session.number):
        raise ParkingError(f"{file}: is that of session {session.number}; give its folder the name it had")
    return session
