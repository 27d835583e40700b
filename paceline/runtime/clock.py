"""One clock for all ranks: the wall clock, read once, carried on by the monotonic one."""

from __future__ import annotations

import time

__all__ = ["now"]

_OFFSET = time.time() - time.monotonic()


def now() -> float:
    """Seconds since the epoch; never steps back within a process."""
    return time.monotonic() + _OFFSET
