"""What can go wrong between ranks. Every message says what to do about it."""

from __future__ import annotations

from collections.abc import Iterable

from paceline.pipeline.credits import CreditError

__all__ = [
    "ChannelError",
    "CreditError",
    "MalformedError",
    "MisroutedError",
    "OversizedError",
    "PacelineError",
    "PeerLost",
    "RendezvousError",
    "StageError",
    "TransportError",
    "UnsupportedError",
    "WireError",
]


class PacelineError(Exception):
    """Base of all errors of the runtime."""


class StageError(PacelineError):
    """A stage raised. Names the stage, its rank, and the session and frame that it was at; the cause is chained."""

    def __init__(self, stage: str, rank: int, session: int, frame: int, cause: BaseException) -> None:
        super().__init__(
            f"stage {stage} on rank {rank} failed at session {session}, frame {frame}: {type(cause).__name__}: {cause}"
        )
        self.stage, self.rank, self.session, self.frame = stage, rank, session, frame


class RendezvousError(PacelineError):
    """The ranks did not find one another. `missing` holds the ranks that did not come, as far as they are known."""

    def __init__(self, message: str, missing: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.missing = tuple(sorted(missing))


class TransportError(PacelineError):
    """Base of what goes wrong once the ranks are connected."""


class ChannelError(TransportError):
    """A channel was used against its contract, or broke; the worker can't go on."""


class PeerLost(TransportError):
    """A peer died, left with an error, or can't be reached any more."""

    def __init__(self, rank: int, reason: str) -> None:
        super().__init__(f"rank {rank} is lost: {reason}; see the log of rank {rank}, then restart the run")
        self.rank = rank
        self.reason = reason


class WireError(TransportError):
    """A message that is refused. Nothing was allocated for it."""


class MalformedError(WireError):
    """Not a message of Paceline, cut off, or contradicting itself."""


class UnsupportedError(WireError):
    """Another version of the protocol, or a dtype that has no place on the wire."""


class OversizedError(WireError):
    """Larger than `network.max_message` or than what a header may hold."""


class MisroutedError(WireError):
    """For another edge, rank or transport than the one it came by."""
