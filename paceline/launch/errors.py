"""Why a command ends without success, the exit code that says so, and signals that ask a run to end."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

__all__ = [
    "ArgumentError",
    "Interrupted",
    "Interrupts",
    "LaunchError",
    "OutputsError",
    "RunFailedError",
    "SpecError",
    "raise_on_sigterm",
]


class LaunchError(Exception):
    """Ends a command with a message for the user and an exit code."""

    exit_code = 1


class ArgumentError(LaunchError):
    """The topology or the arguments are wrong; no process was started."""

    exit_code = 2


class RunFailedError(LaunchError):
    """The run was started and failed. `detail` is what helps to find out why: the end of a worker's log."""

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class SpecError(LaunchError):
    """The file that tells workers what to run can't be read."""


class OutputsError(LaunchError):
    """The run went well, and some of its outputs could not be written."""

    def __init__(self, out: Path, lost: Sequence[str]) -> None:
        """`lost`: what could not be written, with the reasons."""
        super().__init__(f"outputs in {out} are not complete: " + "; ".join(lost))


class Interrupted(LaunchError):
    """A signal asked the run to end: exit code 130 for SIGINT (Ctrl-C), 143 for SIGTERM, as shells count."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}; all workers were stopped")
        self.exit_code = 128 + signum


class Interrupts:
    """While active, SIGINT and SIGTERM are counted and raise nothing, so that workers are always ended in order."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.count = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def check(self) -> None:
        """Raise `Interrupted` where a signal came."""
        if self.first is not None:
            raise Interrupted(self.first)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.first = self.first or signum
        self.count += 1


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """While active, SIGTERM raises `Interrupted`, as SIGINT raises `KeyboardInterrupt`: what is half done is undone."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
