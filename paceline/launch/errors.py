"""Why a command ends without success, and the exit code that says so."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

__all__ = ["ArgumentError", "Interrupted", "LaunchError", "OutputsError", "RunFailedError", "SpecError"]


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
