"""How far a run is, on standard error: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

__all__ = ["Display"]

_BAR_PERIOD_S = 0.2
_LINE_PERIOD_S = 5.0


class Display:
    """Call it with the number of frames that are done. It draws seldom: the workers need the cores."""

    def __init__(self, total: int, quiet: bool = False) -> None:
        self._total = total
        self._quiet = quiet
        self._start_s = time.monotonic()
        self._drawn_s = self._start_s
        self._bar = None if quiet or not sys.stderr.isatty() else _Bar(total)

    def __enter__(self) -> Display:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, count: int) -> None:
        if self._quiet:
            return
        now = time.monotonic()
        period = _LINE_PERIOD_S if self._bar is None else _BAR_PERIOD_S
        if now - self._drawn_s < period:
            return
        self._drawn_s = now
        if self._bar is not None:
            self._bar.draw(count)
        elif count < self._total:
            elapsed = now - self._start_s
            print(f"paceline: {count} of {self._total} frames after {elapsed:.0f} s", file=sys.stderr, flush=True)


class _Bar:
    """Rich's progress bar, drawn only when asked, without its thread."""

    def __init__(self, total: int) -> None:
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
        self._task = self._progress.add_task("frames", total=total)
        self._progress.start()

    def draw(self, count: int) -> None:
        self._progress.update(self._task, completed=count, refresh=True)

    def close(self) -> None:
        self._progress.stop()
