"""`paceline plan`: what a topology will do, before anything runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from paceline.launch.commands.guard import guarded
from paceline.launch.commands.options import AsJson, Debug, Overrides, TopologyFile, as_path
from paceline.launch.console import make_console
from paceline.launch.errors import ArgumentError
from paceline.launch.json_output import check_version, versioned
from paceline.launch.plan_view import plan_json, show_plan
from paceline.launch.weights import read_model_file
from paceline.pipeline.costs import Costs, costs_from
from paceline.pipeline.load import load_topology
from paceline.pipeline.plan import plan as make_plan
from paceline.pipeline.topology import FrameTopology, LanguageTopology

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
    language topology: its ranks, and the speed that speculation promises.

    Exit code 2 where the topology is wrong or can deadlock.
    """
    loaded = load_topology(topology, overrides or ())
    if loaded.workload == "language":
        _language(loaded, as_json)
        return
    model = read_model_file(loaded)
    costs = _costs(loaded, measured)
    try:
        made = make_plan(loaded, model.shape, costs, sessions=sessions, frames=frames, weights_bytes=model.bytes)
    except ValueError as error:
        raise ArgumentError(f"{topology}: {error}") from error
    if as_json:
        print(json.dumps(versioned(plan_json(made))))
    else:
        show_plan(made, make_console())
    if made.deadlock is not None:
        raise typer.Exit(2)


def _language(topology: LanguageTopology, as_json: bool) -> None:
    # Imported here: it knows the runtime's roles, and with them comes torch, which other plans do without.
    from paceline.launch.language.plan import language_plan, show_language_plan

    made = language_plan(topology)
    if as_json:
        print(json.dumps(versioned(made)))
    else:
        show_language_plan(made, make_console())


def _costs(topology: FrameTopology, measured: Path | None) -> Costs:
    if measured is None:
        return costs_from(topology)
    try:
        summary = json.loads(measured.read_bytes())
        if not isinstance(summary, Mapping):
            raise ValueError("it holds no JSON object; give the summary.json of a run (--out DIR)")
        check_version(summary)
        return costs_from(topology, summary)
    except OSError as error:
        raise ArgumentError(f"--measured {measured}: can't be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"--measured {measured}: {error}") from error
