"""Ways to start the processes of a run, by name."""

from __future__ import annotations

from typing import Any, Protocol

from paceline.launch.errors import ArgumentError
from paceline.launch.summary import Summary
from paceline.launch.torchrun import Launched, run_launched
from paceline.launch.workload import Workload
from paceline.registry import Registry

__all__ = ["LAUNCHERS", "Launcher", "check_launcher", "launch"]


class Launcher(Protocol):
    """Starts a workload, watches it, stops what it started, and returns the summary.

    A worker calls `Workload.work` for its rank, with `MASTER_ADDR` and `MASTER_PORT` of a store in its environment as
    under torchrun; where the leader runs, `begin`, `progress` and `finish` are called, or `finish_early`.

    `hang_timeout_s`: a worker that reports nothing for so long counts as hung. `debug`: errors carry tracebacks and
    whole logs. Raises `RunFailedError`, `Interrupted` or `OutputsError`, and leaves no process behind.
    """

    def __call__(self, workload: Workload[Any], hang_timeout_s: float, debug: bool) -> Summary: ...


LAUNCHERS = Registry("launcher", "paceline.launchers", {"processes": "paceline.launch.local:run_local"})
"""All launchers that a command can start; torchrun starts the command."""


def check_launcher(name: str | None, launched: Launched | None) -> None:
    """Raise `ArgumentError` where `--launcher` names none, or another launcher has started this process."""
    if name is None:
        return
    if launched is not None:
        raise ArgumentError("--launcher: torchrun has started this process; leave it out, or start without torchrun")
    try:
        LAUNCHERS.load(name)
    except ValueError as error:
        raise ArgumentError(f"--launcher: {error}") from error


def launch(
    workload: Workload[Any], name: str | None, launched: Launched | None, hang_timeout_s: float, debug: bool
) -> Summary | None:
    """Run a workload: with the launcher of a name, or this process's rank where torchrun started it. The summary where
    the leader is, else None. Raises what the launcher raises."""
    if launched is not None:
        return run_launched(workload, launched)
    start: Launcher = LAUNCHERS.load(name or "processes")
    return start(workload, hang_timeout_s, debug)
