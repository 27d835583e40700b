"""`torchrun --nproc-per-node N -m paceline.launch TOPOLOGY`: one rank, or, unlaunched, `paceline run`. With `generate`
before the topology it is `paceline generate`."""

from __future__ import annotations

import os
import sys

# `python -m` puts the working directory first on the path of modules. What lies there is the user's: a random.py must
# neither run in the ranks nor hide what they import. (-P and PYTHONSAFEPATH leave it out themselves.)
if not sys.flags.safe_path and sys.path[:1] in ([""], [os.getcwd()]):
    del sys.path[0]

import typer

from paceline.launch.commands.generate import generate
from paceline.launch.commands.run import run
from paceline.launch.commands.start import LAUNCHED
from paceline.launch.console import prepare_standard_streams

__all__: list[str] = []


def main() -> None:
    """Run this process's rank; never returns."""
    prepare_standard_streams()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    name = "python -m paceline.launch"
    if sys.argv[1:2] == ["generate"]:
        app.command()(generate)
        app(sys.argv[2:], prog_name=f"{name} generate", obj=LAUNCHED)
    app.command()(run)
    app(prog_name=name, obj=LAUNCHED)


if __name__ == "__main__":
    main()
