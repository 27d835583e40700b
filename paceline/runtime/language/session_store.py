"""What one verifier's rank writes of sessions that are parked, and reads of those that are taken up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from paceline.runtime.language.parked import ParkedSession, kv_file, note_of, session_folder, write_parked
from paceline.runtime.language.spec import GenerateSpec
from paceline.stages.lm.decoder import Decoder
from paceline.stages.lm.sequence_kv import SequenceError
from paceline.tiers.errors import TierError

__all__ = ["SessionStore"]


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
