"""Credits on their way back to the ranks that sent the items."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from paceline.pipeline.topology import Topology
from paceline.runtime.wire import Returned

__all__ = ["CreditReturns"]


class CreditReturns:
    """Credits that are owed to other ranks. They go in one message for each rank: when half of an edge's credit is
    owed, or with `flush`."""

    def __init__(self, topology: Topology, send: Callable[[int, Sequence[Returned]], None]) -> None:
        """`send` takes a rank and what goes back to it; it may be called by any thread that calls `owe`."""
        self._topology, self._send = topology, send
        self._owed: dict[int, dict[tuple[int, int], tuple[int, int]]] = {}
        """By rank, and by edge and session: items and bytes"""
        self._owing = threading.Lock()

    def owe(self, source: int, edge: int, session: int, items: int, nbytes: int) -> None:
        """Note credit that goes back to a rank. A receiving thread does so for items that it discards, beside the
        worker."""
        with self._owing:
            owed = self._owed.setdefault(source, {})
            owed_items, owed_bytes = owed.get((edge, session), (0, 0))
            owed[edge, session] = items, nbytes = owed_items + items, owed_bytes + nbytes
        spec = self._topology.edges[edge]
        if 2 * items >= spec.inflight or 2 * nbytes >= spec.bytes:
            self._pay(source)

    def flush(self) -> None:
        """Send all that is owed."""
        for source in list(self._owed):
            self._pay(source)

    def _pay(self, source: int) -> None:
        with self._owing:
            owed = self._owed.pop(source, None)
        if owed:
            self._send(source, [Returned(edge, session, *counts) for (edge, session), counts in owed.items()])
