"""A line of the journal: one decision as a JSON object, and the CRC-32C of it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from paceline.runtime.errors import PacelineError
from paceline.runtime.result import Decision
from paceline.tiers.checksum import crc32c

__all__ = ["JournalError", "decode_decision", "encode_decision"]

_Natural = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class JournalError(PacelineError):
    """A line is no decision, or is damaged."""


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    session: _Natural
    frame: _Natural
    what: Literal["fewer_steps", "repeat"]
    value: _Natural
    crc32c: int | None = None
    """Of the decision without it; lines of earlier versions have none."""


def encode_decision(decision: Decision) -> bytes:
    """The line of a decision, with its end."""
    crc = crc32c(msgspec.json.encode(decision))
    line = _Line(decision.session, decision.frame, decision.what, decision.value, crc)  # type: ignore[arg-type]
    return msgspec.json.encode(line) + b"\n"


def decode_decision(line: bytes) -> Decision:
    """The decision of a line. Raises `JournalError`, whatever the bytes are."""
    try:
        found = msgspec.json.decode(line, type=_Line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise JournalError(f"is no decision ({error})") from error
    decision = Decision(found.session, found.frame, found.what, found.value)
    if found.crc32c is not None and found.crc32c != crc32c(msgspec.json.encode(decision)):
        raise JournalError("is damaged, its CRC-32C is wrong")
    return decision
