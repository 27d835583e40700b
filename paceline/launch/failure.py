"""What a worker says when it fails, and which of several failures is the cause of the others."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from paceline.launch.files import write_bytes
from paceline.launch.run_dir import RunDirPaths
from paceline.runtime.errors import PeerLost, RendezvousError, TransportError

__all__ = ["End", "Failure", "cause_of"]

Blame = Literal["cause", "transport", "peer"]


class Failure(msgspec.Struct, frozen=True):
    """One worker's account of its own end."""

    rank: int
    error: str
    """Type of the exception."""
    message: str
    traceback: str
    blame: Blame
    """`peer`: it only noticed that another rank is gone. `transport`: perhaps. `cause`: it failed by itself."""
    stage: str | None = None
    session: int | None = None
    frame: int | None = None

    @classmethod
    def of(cls, rank: int, error: BaseException) -> Failure:
        """The account of an exception that ended a rank; an error of a stage carries its stage, session and frame."""
        return cls(
            rank=rank,
            error=type(error).__name__,
            message=str(error) or type(error).__name__,
            traceback="".join(traceback.format_exception(error)),
            blame=_blame(error),
            stage=getattr(error, "stage", None),
            session=getattr(error, "session", None),
            frame=getattr(error, "frame", None),
        )

    def write(self, run_dir: Path) -> None:
        """Leave the account for the supervisor, whole or not at all."""
        write_bytes(RunDirPaths(run_dir).failure(self.rank), msgspec.json.encode(self))

    @classmethod
    def read(cls, run_dir: Path, rank: int) -> Failure | None:
        """The account of a rank, or None where it left none that can be read."""
        try:
            return msgspec.json.decode(RunDirPaths(run_dir).failure(rank).read_bytes(), type=cls)
        except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def __str__(self) -> str:
        # The message of a stage's error names stage, session and frame itself.
        return self.message if self.stage is not None else f"{self.error}: {self.message}"


@dataclass(frozen=True, slots=True)
class End:
    """How a worker ended: its exit code (negative: the signal), and its own account."""

    rank: int
    name: str
    code: int
    failure: Failure | None = None

    @property
    def weight(self) -> int:
        """How much it looks like the cause of the other ends."""
        if self.failure is not None:
            return {"cause": 4, "transport": 1, "peer": 0}[self.failure.blame]
        return 3 if self.code < 0 else 2

    @property
    def conclusive(self) -> bool:
        """Whether no other end can be its cause."""
        return self.weight >= 3

    def __str__(self) -> str:
        if self.failure is not None:
            return f"{self.name} failed: {self.failure}"
        if self.code >= 0:
            return f"{self.name} ended with exit code {self.code} and did not say why"
        name = signal.Signals(-self.code).name
        hint = " (by hand, or by the kernel for want of memory: see dmesg)" if name == "SIGKILL" else ""
        return f"{self.name} was killed by {name}{hint}"


def cause_of(ends: Sequence[End]) -> End:
    """The end that explains the others: the heaviest, and of equals the first."""
    return max(ends, key=lambda end: end.weight)


def _blame(error: BaseException) -> Blame:
    chain = list(_chain(error))
    if any(isinstance(link, PeerLost) for link in chain):
        return "peer"
    return "transport" if any(isinstance(link, TransportError | RendezvousError) for link in chain) else "cause"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
