"""Standard output: tables through Rich, and text as it is."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["escape_what_does_not_fit", "make_console", "takes_colour"]


def make_console() -> Console:
    """Rich on standard output. Names of a user's are printed as they are, whatever brackets or colons are in them."""
    # Imported here: commands with --json print no tables.
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False)


def escape_what_does_not_fit() -> None:
    """Let standard output write characters that its encoding lacks as escapes (`\\u00e9`), in place of an error that
    ends the run. Its encoding is the terminal's, or what PYTHONIOENCODING says."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def takes_colour(output: TextIO) -> bool:
    """Whether text may be coloured there: on a terminal that has colours, unless NO_COLOR is set."""
    return output.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
