"""Standard streams: tables through Rich, text as it is, and what the user is told beside."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["make_console", "prepare_standard_streams", "say", "takes_colour"]


def make_console() -> Console:
    """Rich on standard output. Names of a user's are printed as they are, whatever brackets or colons are in them."""
    # Imported here: commands with --json print no tables.
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False)


def prepare_standard_streams() -> None:
    """Open standard input, output and error on /dev/null where whoever started this process left them closed: another
    file would get the number, and a worker would write its log there. Let standard output write characters that its
    encoding lacks as escapes (`\\u00e9`), in place of an error that ends the run: its encoding is the terminal's, or
    what PYTHONIOENCODING says."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is not None:
            continue
        # Python found it closed. It stays open: the stream may be used until the very end.
        opened = os.open(os.devnull, os.O_RDWR)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)
        stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Tell the user on standard error. Where it is full, or nobody reads it any more, nothing else is lost for that."""
    with contextlib.suppress(OSError):
        print(f"paceline: {text}", file=sys.stderr, flush=True)


def takes_colour(output: TextIO) -> bool:
    """Whether text may be coloured there: on a terminal that has colours, unless NO_COLOR is set."""
    return output.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
