"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["AsJson", "Debug", "Overrides", "TopologyFile"]

TopologyFile = Annotated[
    Path, typer.Argument(metavar="TOPOLOGY", help="The topology, a YAML file.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a value of the topology, as edges.0.inflight=4. Repeatable."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="End standard output with one JSON object.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and whole logs.")]
