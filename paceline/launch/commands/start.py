"""What the commands that start a run share: how a launcher is found, and what is printed of the result."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from paceline.launch.console import Display
from paceline.launch.errors import ArgumentError
from paceline.launch.launchers import Launched, check_launcher, launch, recorded, refusals
from paceline.launch.summary import Summary
from paceline.launch.workload import Audience, Workload
from paceline.pipeline.load import load_topology
from paceline.pipeline.topology import Topology

__all__ = ["LAUNCHED", "audience_of", "loaded_for", "preflight", "start"]

_OPEN_FILES, _OPEN_FILES_PER_RANK = 64, 4
# Libraries, weights and sockets of one process; and what it has for each other rank, of ZMQ and gloo together.

LAUNCHED = object()
"""As the context's object: this process may be one rank among those that a launcher started."""


@contextmanager
def preflight(context: typer.Context, command: str, launcher: str | None, serial: bool) -> Iterator[Launched | None]:
    """Everything that is refused before a process is started happens in here. Gives this process's place, where a
    launcher has started it."""
    launched = Launched.from_environment() if context.obj is LAUNCHED else None
    with refusals(launched):
        check_launcher(launcher, launched)
        if launched is not None and serial:
            raise ArgumentError(f"--serial runs in one process; start it with `paceline {command}`, without torchrun")
        yield launched


def loaded_for(launched: Launched | None, file: Path, overrides: Sequence[str] | None) -> Topology:
    """The topology, for as many ranks as there are. Raises `TopologyError`."""
    topology = load_topology(file, overrides or (), None if launched is None else launched.world_size)
    _raise_open_files(topology.world_size)
    if launched is not None:
        launched.use_threads(topology)
    return topology


def _raise_open_files(ranks: int) -> None:
    """Raise this process's limit of open files, which its workers inherit, where it is too low for a run. Raises
    `ArgumentError` where it may not."""
    needed = _OPEN_FILES + _OPEN_FILES_PER_RANK * ranks
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or limit >= needed:
        return
    if most != resource.RLIM_INFINITY and most < needed:
        raise ArgumentError(f"a process may have {most} open files, and this run needs {needed}; raise it by ulimit -n")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))


def audience_of(display: Display, tables: bool, as_json: bool) -> Audience:
    """Shows progress on `display`, and at the end prints warnings, for people (`tables`) what came out and where
    outputs are, and the JSON object."""

    def tell(workload: Workload[Any], summary: Summary) -> None:
        display.clear()
        for warning in summary["warnings"]:
            print(f"paceline: warning: {warning}", file=sys.stderr, flush=True)
        if tables:
            workload.show(summary)
            if workload.out is not None:
                print(f"outputs in {workload.out}")
        if as_json:
            print(json.dumps(summary))
        sys.stdout.flush()

    return Audience(display, tell, display.writing)


def start(
    workload: Workload[Any], launcher: str | None, launched: Launched | None, hang_timeout_s: float, debug: bool
) -> None:
    """Run a workload. Raises what its launcher raises, and `RunFailedError` where no session came through."""
    summary = launch(workload, launcher, launched, hang_timeout_s, debug)
    if summary is not None:
        with recorded(launched):
            workload.check_sessions(summary)
