"""The `paceline` command."""

from __future__ import annotations

from typing import Annotated

import typer

from paceline.launch.commands.generate import generate
from paceline.launch.commands.plan import plan
from paceline.launch.commands.run import run
from paceline.launch.commands.trace import record, replay
from paceline.launch.commands.validate import validate
from paceline.launch.console import prepare_standard_streams
from paceline.launch.process import leave, prepare_fork

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("paceline"))
        raise typer.Exit


@app.callback()
def paceline(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Pipelined inference: denoising steps and speculative drafts in flight across device groups."""


app.command()(validate)
app.command()(plan)
app.command()(run)
app.command()(generate)

trace = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
trace.command()(record)
trace.command()(replay)
app.add_typer(trace, name="trace", help="Attention traces: record them, and score policies on them.")


def main() -> None:
    """Run the command line; never returns."""
    prepare_standard_streams()
    prepare_fork()
    try:
        app(prog_name="paceline")
    except SystemExit as end:
        leave(end)
