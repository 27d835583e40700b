"""Signals that ask a run to end, noted where a loop can see them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from paceline.launch.errors import Interrupted

__all__ = ["Interrupts", "raise_on_sigterm"]


class Interrupts:
    """While active, SIGINT and SIGTERM are counted and raise nothing, so that workers are always ended in order."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.count = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def check(self) -> None:
        """Raise `Interrupted` where a signal came."""
        if self.first is not None:
            raise Interrupted(self.first)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.first = self.first or signum
        self.count += 1


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """While active, SIGTERM raises `Interrupted`, as SIGINT raises `KeyboardInterrupt`: what is half done is undone."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
