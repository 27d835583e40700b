"""`paceline validate`: everything that is wrong with a topology, without starting anything."""

from __future__ import annotations

import json
from collections.abc import Iterator

import typer

from paceline.launch.commands.guard import guarded
from paceline.launch.commands.options import AsJson, Debug, Overrides, TopologyFile
from paceline.launch.errors import ArgumentError
from paceline.launch.summary import versioned
from paceline.launch.workload import workload_class
from paceline.pipeline.load import check_topology
from paceline.pipeline.problem import Problem
from paceline.pipeline.topology import Topology

__all__ = ["validate"]


@guarded
def validate(
    topology: TopologyFile, overrides: Overrides = None, as_json: AsJson = False, debug: Debug = False
) -> None:
    """Print every problem of a topology, one a line: FILE:LINE: KEY: what is wrong; what would be right. A topology
    that is right by itself is checked against the models and keys that it names.

    Exit code 0 where it is fine, 2 where it is not.
    """
    checked, problems = check_topology(topology, overrides or (), further=_file_problems)
    if as_json:
        name = None if checked is None else checked.name
        found = {"topology": name, "ok": not problems, "problems": [_fields(p) for p in problems]}
        print(json.dumps(versioned(found)))
    elif checked is not None:
        ranks = f"{checked.world_size} rank" + ("s" if checked.world_size > 1 else "")
        print(f"{topology}: ok ({checked.name}: {len(checked.stages)} stages on {ranks})")
    else:
        print("\n".join(map(str, problems)))
    if problems:
        raise typer.Exit(2)


def _fields(problem: Problem) -> dict[str, str | int | None]:
    return {
        "file": problem.file,
        "line": problem.line,
        "key": problem.key,
        "wrong": problem.wrong,
        "right": problem.right,
    }


def _file_problems(topology: Topology) -> Iterator[Problem]:
    """What is wrong with the files of a topology, and with its memory tiers for the models in them."""
    try:
        workload_class(topology).smallest(topology).check_files()
    except ArgumentError as error:
        yield _problem(error)


def _problem(error: ArgumentError) -> Problem:
    """The message `KEY: what is wrong; what would be right` as a problem of that key."""
    key, _, text = str(error).partition(": ")
    wrong, _, right = text.rpartition("; ")
    return Problem(tuple(key.split(".")), wrong or text, right)
