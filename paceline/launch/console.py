"""Standard streams: tables through Rich, text as it is, what the user is told beside, and how far a run is."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Display", "make_console", "prepare_standard_streams", "say", "takes_colour"]


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


_BAR_PERIOD_S = 0.2
_LINE_PERIOD_S = 5.0


class Display:
    """Call it with the number of frames that are done, and then its `writing` for each picture. It draws seldom: the
    workers need the cores."""

    def __init__(self, total: int, quiet: bool = False) -> None:
        self._total = total
        self._quiet = quiet
        self._start_s = time.monotonic()
        self._drawn_s = self._start_s
        self._terminal = sys.stderr.isatty()
        self._bar: _Bar | None = None

    def __enter__(self) -> Display:
        if self._terminal and not self._quiet:
            self._bar = _Bar("frames", self._total)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.clear()

    def __call__(self, count: int) -> None:
        if not self._due():
            return
        if self._bar is not None:
            self._bar.draw("frames", count)
        elif count < self._total:
            elapsed = time.monotonic() - self._start_s
            say(f"{count} of {self._total} frames after {elapsed:.0f} s")

    def writing(self, name: str, done: int, total: int) -> None:
        """Show that a file is being made, the one after `done` of `total`."""
        if self._quiet:
            return
        if self._terminal:
            if self._bar is None:
                self._bar = _Bar("pictures", total)
            self._bar.draw(name, done)
        elif not done or self._due():
            self._drawn_s = time.monotonic()
            say(f"writing {name} ({done + 1} of {total})")

    def clear(self) -> None:
        """Take the bar away, so that something can be printed."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _due(self) -> bool:
        now = time.monotonic()
        period = _LINE_PERIOD_S if self._bar is None else _BAR_PERIOD_S
        if self._quiet or now - self._drawn_s < period:
            return False
        self._drawn_s = now
        return True


class _Bar:
    """Rich's progress bar, drawn only when asked, without its thread."""

    def __init__(self, what: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            auto_refresh=False,
            transient=True,
        )
        self._task = self._progress.add_task(what, total=total)
        self._progress.start()

    def draw(self, what: str, count: int) -> None:
        self._progress.update(self._task, description=what, completed=count, refresh=True)

    def close(self) -> None:
        self._progress.stop()
