"""What the `paceline` script calls. It imports nothing before Ctrl-C ends the command without a traceback."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; never returns."""
    try:
        from paceline.launch.cli import main as run

        run()
    except KeyboardInterrupt:
        # While modules were imported: nothing has started, and nothing is to be undone.
        print("paceline: interrupted", file=sys.stderr, flush=True)
        os._exit(130)
