"""`torchrun --nproc-per-node N -m paceline.launch TOPOLOGY`: one rank, or, unlaunched, `paceline run`."""

from __future__ import annotations

import typer

from paceline.launch.commands.run import LAUNCHED, run

__all__: list[str] = []


def main() -> None:
    """Run this process's rank; never returns."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(run)
    app(prog_name="python -m paceline.launch", obj=LAUNCHED)


if __name__ == "__main__":
    main()
