"""`paceline plan`: what a topology will do, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from paceline.launch.commands.guard import guarded
from paceline.launch.commands.options import AsJson, Debug, Overrides, TopologyFile, as_path
from paceline.launch.console import make_console
from paceline.launch.summary import versioned
from paceline.launch.workload import workload_class
from paceline.pipeline.load import load_topology

__all__ = ["plan"]


@guarded
def plan(
    topology: TopologyFile,
    frames: Annotated[int | None, typer.Option(min=1, help="Simulated frames; enough for a steady state.")] = None,
    sessions: Annotated[int | None, typer.Option(min=1, help="Sessions; as many as keep all ranks busy.")] = None,
    measured: Annotated[
        Path | None, typer.Option(metavar="SUMMARY", parser=as_path, help="Stage costs from the summary.json of a run.")
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Draw a topology, place its ranks, predict period, bubble and latency, and prove that it can't deadlock. For a
    language topology: its ranks, that every run ends, and the speed that speculation promises.

    Exit code 2 where the topology is wrong or can deadlock.
    """
    loaded = load_topology(topology, overrides or ())
    made = workload_class(loaded).smallest(loaded).plan(topology, frames, sessions, measured)
    if as_json:
        print(json.dumps(versioned(made.fields)))
    else:
        made.show(make_console())
    if not made.live:
        raise typer.Exit(2)
