"""How far a run is, on standard error: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from paceline.launch.console import say

__all__ = ["Display"]

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
