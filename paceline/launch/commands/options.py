"""Arguments and options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["AsJson", "Debug", "HangTimeout", "LauncherName", "Overrides", "TopologyFile", "as_path"]


def as_path(text: str | Path) -> Path:
    """The path of an argument; `~` and `~user` are home folders, also where the shell left them as they were.

    Raises `typer.BadParameter` for an empty one, which would else be the working directory.
    """
    if not str(text):
        raise typer.BadParameter("is empty; name a file or folder, . for the working directory")
    return Path(os.path.expanduser(text))


TopologyFile = Annotated[
    Path, typer.Argument(metavar="TOPOLOGY", parser=as_path, help="The topology, a YAML file.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a value of the topology, as edges.0.inflight=4. Repeatable."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="End standard output with one JSON object.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and whole logs.")]


def _seconds(value: float) -> float:
    # `min` and `max` of an option let NaN pass.
    if not _SHORTEST_HANG_S <= value <= _LONGEST_HANG_S:
        raise typer.BadParameter(f"is {value:g}; give seconds from {_SHORTEST_HANG_S:g} to {_LONGEST_HANG_S:g}")
    return value


_SHORTEST_HANG_S, _LONGEST_HANG_S = 2.0, 86_400.0
# Workers report five times a second; a busy machine may keep one from it for a second.

LauncherName = Annotated[
    str | None,
    typer.Option(
        "--launcher", metavar="NAME", help="What starts the ranks; others than `processes` come from packages."
    ),
]
HangTimeout = Annotated[
    float,
    typer.Option(
        "--hang-timeout",
        metavar="SECONDS",
        callback=_seconds,
        help="A worker that is silent for longer counts as hung; at least 2, and longer than its longest pass.",
    ),
]
