"""What compute had to wait for, by cause."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = ["Stalls"]


@dataclass(slots=True)
class Stalls:
    """How often and how long compute waited. Causes: `hbm_full` and `dram_full` (a block had to be demoted at once),
    `move` (for a move that was on its way), `write` (a block that lay far was written), `nvme` (attention read from
    there)."""

    count: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    _deep: int = 0

    @contextmanager
    def waiting(self, cause: str) -> Iterator[None]:
        """Count what is done inside as a stall; of stalls inside one another, the outer one has the seconds."""
        self.count[cause] = self.count.get(cause, 0) + 1
        start = time.perf_counter()
        self._deep += 1
        try:
            yield
        finally:
            self._deep -= 1
            if not self._deep:
                self.seconds[cause] = self.seconds.get(cause, 0.0) + time.perf_counter() - start
