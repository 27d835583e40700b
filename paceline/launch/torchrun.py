"""One rank of a run whose processes torchrun started. torchrun supervises; this joins, runs and reports."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from paceline.launch.errors import ArgumentError, RunFailedError
from paceline.launch.failure import Failure
from paceline.launch.finish import Audience, finish, finish_early
from paceline.launch.interrupts import raise_on_sigterm
from paceline.launch.journal import read_journal
from paceline.launch.local import coordinator_rank
from paceline.launch.run_dir import RunDir
from paceline.launch.summary import Summary
from paceline.launch.threads import thread_environment
from paceline.pipeline.placement import Placement
from paceline.pipeline.topology import Topology
from paceline.runtime.spec import RunSpec

__all__ = ["Launched", "leave_to_first", "record_failure", "run_launched"]

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


def leave_to_first() -> NoReturn:
    """End a rank that found what every rank finds. Not at once: torchrun ends the others as soon as one has ended, and
    the first rank is to say what is wrong before that."""
    time.sleep(_FIRST_SAYS_S)
    raise SystemExit(2)


def run_launched(spec: RunSpec, launched: Launched, audience: Audience) -> Summary | None:
    """Run this process's rank; the summary on the coordinator's rank, None elsewhere.

    Raises `RunFailedError`, after leaving the cause where torchrun reports it from, and `OutputsError`.
    """
    # Imported here: torch takes a second, and what is wrong with the arguments should not wait for it.
    from paceline.runtime.worker import run_rank

    decisions = None if spec.replay is None else read_journal(spec.replay)
    with RunDir() as run_dir:
        try:
            result = run_rank(spec, launched.rank, launched.world_size, run_dir.path, audience.frames, decisions)
        except Exception as error:
            failure = Failure.of(launched.rank, error)
            record_failure(failure)
            failed = RunFailedError(f"rank {launched.rank}: {failure}", failure.traceback)
            if launched.rank == coordinator_rank(spec):
                finish_early(spec, run_dir.path, failed, audience)
            raise failed from error
        if result is None:
            return None
        with raise_on_sigterm():
            return finish(spec, result, run_dir.path, audience)


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
