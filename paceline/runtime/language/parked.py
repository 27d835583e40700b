"""Sessions that a generation left in a folder, for a later one to go on with.

`FOLDER/session-N/session.json` says what a session was, with a CRC-32C of that; `kv-R-HASH.parked` beside it is the KV
of rank R of the verifiers, all positions but the last one, under a hash of its tokens. The first is written last, in
one go: so a folder holds the session as it was or as it is, whenever a run ends.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from paceline.tiers.checksum import crc32c
from paceline.tiers.errors import TierError
from paceline.versions import PARKED_SESSION

if TYPE_CHECKING:
    from paceline.runtime.spec import GenerateSpec
    from paceline.stages.lm.decoder import Decoder

__all__ = [
    "ParkedSession",
    "ParkingError",
    "SessionStore",
    "kv_file",
    "note_of",
    "parked_folders",
    "read_parked",
    "session_folder",
    "write_parked",
]


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
    sampling: dict[str, Annotated[float, msgspec.Meta(ge=0, le=1e9)]] = {}
    """How its tokens were drawn, by option."""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands in `session.json`: `crc32c` is that of the bytes of `session`."""

    version: int
    crc32c: int
    session: msgspec.Raw


class _Version(msgspec.Struct, frozen=True):
    version: int


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
            file.write(_encoded(session))
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


def _encoded(session: ParkedSession) -> bytes:
    body = msgspec.json.encode(session)
    return msgspec.json.encode(_File(PARKED_SESSION, crc32c(body), msgspec.Raw(body)))


def _decoded(file: Path) -> ParkedSession:
    try:
        data = file.read_bytes()
        # The version first: another one may have other fields.
        version = msgspec.json.decode(data, type=_Version).version
        if version != PARKED_SESSION:
            raise ParkingError(f"{file}: of version {version}, not {PARKED_SESSION}; remove {file.parent}")
        found = msgspec.json.decode(data, type=_File)
        if crc32c(bytes(found.session)) != found.crc32c:
            raise ParkingError(f"{file}: is damaged, its CRC-32C is wrong; remove {file.parent}")
        session = msgspec.json.decode(found.session, type=ParkedSession)
        if session.seed >= 1 << 64:
            raise ParkingError(f"{file}: its seed has more than 64 bits; remove {file.parent}")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ParkingError(f"{file}: can't be read ({error}); remove {file.parent}") from error
    if file.parent != session_folder(file.parent.parent, session.number):
        raise ParkingError(f"{file}: is that of session {session.number}; give its folder the name it had")
    return session


class SessionStore:
    """Parks and takes up for a decoder. `rank` is the number of its run of layers; `failures` gets what went wrong;
    `beat` is called now and then while files are written and read."""

    def __init__(
        self, spec: GenerateSpec, rank: int, name: str, failures: list[str], beat: Callable[[], None] = lambda: None
    ) -> None:
        self._spec, self._rank, self._name = spec, rank, name
        self._failures, self._beat = failures, beat

    def park(self, decoder: Decoder, sequence: int, session: int, tokens: Sequence[int]) -> bool:
        """Write the KV of a session's first tokens to a file; whether that went well."""
        number = self._spec.number(session)
        if self._spec.park is None:
            return False
        path = kv_file(session_folder(self._spec.park, number), self._rank, tokens)
        try:
            decoder.park(sequence, len(tokens), path, note_of(tokens), self._beat)
        except (TierError, ValueError) as error:
            self._failures.append(f"session {number} could not be parked on {self._name}: {error}")
            return False
        return True

    def take_up(self, decoder: Decoder, sequence: int, session: int, tokens: Sequence[int]) -> bool:
        """Let a sequence begin with KV that was parked; whether it could, if need be by computing it again."""
        # Imported here: the launcher reads what was parked, and needs no torch.
        from paceline.stages.lm.sequence_kv import SequenceError

        resumed = self._spec.resumed[session]
        path = kv_file(resumed.folder, self._rank, tokens)
        try:
            why = decoder.take_up(sequence, path, tokens, note_of(tokens), self._beat)
        except SequenceError as error:
            self._failures.append(f"session {resumed.session.number} failed on {self._name}: {error}")
            return False
        if why is not None:
            self._failures.append(f"session {resumed.session.number} was computed again on {self._name}: {why}")
        return True

    def complete(self, session: ParkedSession) -> bool:
        """All KV of a session is written: say that it can be taken up; whether that went well."""
        if self._spec.park is None:
            return False
        try:
            write_parked(self._spec.park, session)
        except OSError as error:
            self._failures.append(f"session {session.number} could not be parked: {error}")
            return False
        return True

    def record(self, session: int, tokens: list[int], seed: int, reason: str, ranks: int) -> ParkedSession:
        """What is to be said of a session when its KV is complete."""
        sampling = self._spec.options(session).sampling.options()
        return ParkedSession(self._spec.number(session), seed, tokens, reason, ranks, sampling)
