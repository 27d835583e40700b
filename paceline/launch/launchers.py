"""Ways to start the processes of a run: launchers by name, and torchrun, which has started this process."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from paceline.launch.errors import ArgumentError, LaunchError, RunFailedError, raise_on_sigterm
from paceline.launch.failure import Failure
from paceline.launch.process import thread_environment
from paceline.launch.run_dir import RunDir
from paceline.launch.summary import Summary
from paceline.launch.workload import Workload
from paceline.pipeline.placement import Placement
from paceline.pipeline.problem import TopologyError
from paceline.pipeline.topology import Topology
from paceline.registry import Registry

__all__ = [
    "LAUNCHERS",
    "Launched",
    "Launcher",
    "check_launcher",
    "launch",
    "record_failure",
    "recorded",
    "refusals",
    "run_launched",
]


_FIRST_SAYS_S = 2.0


@dataclass(frozen=True, slots=True)
class Launched:
    """What a launcher told this process about its place."""

    rank: int
    world_size: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Launched | None:
        """None where no launcher started this process. Raises `ArgumentError` where it was told nonsense."""
        if "RANK" not in environment and "WORLD_SIZE" not in environment:
            return None
        try:
            found = cls(int(environment["RANK"]), int(environment["WORLD_SIZE"]))
        except (KeyError, ValueError):
            raise ArgumentError(
                "RANK and WORLD_SIZE must both be numbers; start with torchrun, or unset them"
            ) from None
        if not 0 <= found.rank < found.world_size:
            raise ArgumentError(
                f"RANK is {found.rank} of a WORLD_SIZE of {found.world_size}; start with torchrun, or unset them"
            )
        return found

    def use_threads(self, topology: Topology) -> None:
        """Have math libraries use the threads of this rank's group. Call it before torch is imported: torchrun sets one
        thread, and says nothing of how threads wait."""
        group = topology.groups[Placement(topology).group_of_rank(self.rank)]
        os.environ.update(thread_environment(group.threads))


@contextmanager
def refusals(launched: Launched | None) -> Iterator[None]:
    """What is wrong with a topology, a model or the arguments, found before anything starts: every rank of a launcher
    finds the same, and the first one says so."""
    try:
        yield
    except (TopologyError, ArgumentError) as error:
        if launched is None:
            raise
        record_failure(Failure.of(launched.rank, error))
        if launched.rank == 0:
            raise
        # Not at once: torchrun ends the others as soon as one has ended, and the first is to speak before that.
        time.sleep(_FIRST_SAYS_S)
        raise SystemExit(2) from None


@contextmanager
def recorded(launched: Launched | None) -> Iterator[None]:
    """Leave the cause of an error where torchrun reports it from."""
    try:
        yield
    except LaunchError as error:
        if launched is not None:
            record_failure(Failure.of(launched.rank, error))
        raise


def run_launched(workload: Workload[Any], launched: Launched) -> Summary | None:
    """Run this process's rank; the summary on the leader, None elsewhere.

    Raises `RunFailedError`, after leaving the cause where torchrun reports it from, and `OutputsError`.
    """
    leads = launched.rank == workload.leader
    with RunDir() as run_dir:
        if leads:
            workload.begin(run_dir)
        try:
            result = workload.work(launched.rank, launched.world_size, run_dir, workload.progress)
        except Exception as error:
            failure = Failure.of(launched.rank, error)
            record_failure(failure)
            failed = RunFailedError(f"rank {launched.rank}: {failure}", failure.traceback)
            if leads:
                workload.finish_early(failed, run_dir)
            raise failed from error
        if result is None:
            return None
        with recorded(launched), raise_on_sigterm():
            return workload.finish(result, run_dir)


def record_failure(failure: Failure) -> None:
    """Write the error file from which torchrun's report takes the cause, in the form of torch's own error handler."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file is None:
        return
    details = {"py_callstack": failure.traceback, "timestamp": str(int(time.time()))}
    content = {"message": {"message": str(failure), "extraInfo": details}}
    try:
        Path(file).write_text(json.dumps(content))
    except OSError as error:
        print(f"paceline: can't write {file}: {error}", file=sys.stderr)


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
