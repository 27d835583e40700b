"""Credits of one edge towards one receiver: how much was sent and not yet taken. Pure bookkeeping.

Credits are counted per session, so that one session's slow stage never blocks another's. The sender holds the ledger;
the receiver says what it took (or threw away), and only that makes room again. Two bounds hold at once, items and
bytes, because items of one edge may differ in size by orders of magnitude.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CreditError", "CreditLedger", "CreditStatistics"]


class CreditError(RuntimeError):
    """The limits of an edge were broken, or can never be met."""


@dataclass(frozen=True, slots=True)
class CreditStatistics:
    """What one ledger has seen. `items` and `bytes` are in flight now, over all sessions; the peaks are those of a
    single session; `refusals` counts the times `can_send` said no."""

    items: int
    bytes: int
    sessions: int
    peak_items: int
    peak_bytes: int
    refusals: int


class CreditLedger:
    """Counts what is in flight of each session against the limits of the edge.

    Not thread-safe: whoever sends and whoever hears of returns share a lock.
    """

    __slots__ = ("_inflight", "_name", "_peak_bytes", "_peak_items", "_refusals", "max_bytes", "max_items")

    def __init__(self, max_items: int, max_bytes: int, name: str = "edge") -> None:
        if max_items < 1 or max_bytes < 1:
            raise CreditError(f"{name}: inflight is {max_items} and bytes is {max_bytes}; both have to be at least 1")
        self.max_items = max_items
        self.max_bytes = max_bytes
        self._name = name
        self._inflight: dict[int, tuple[int, int]] = {}
        self._peak_items = 0
        self._peak_bytes = 0
        self._refusals = 0

    def can_send(self, session: int, items: int, nbytes: int) -> bool:
        """Whether `items` items of together `nbytes` bytes may be sent now.

        Raises `CreditError` where they never may be, because they pass the limit even of an empty edge.
        """
        if items > self.max_items or nbytes > self.max_bytes:
            raise CreditError(
                f"{self._name}: {items} item(s) of {nbytes} bytes can never be sent at once, as the edge holds "
                f"{self.max_items} item(s) and {self.max_bytes} bytes; raise `inflight` or `bytes` of this edge"
            )
        held_items, held_bytes = self._inflight.get(session, (0, 0))
        if held_items + items <= self.max_items and held_bytes + nbytes <= self.max_bytes:
            return True
        self._refusals += 1
        return False

    def on_send(self, session: int, nbytes: int, items: int = 1) -> None:
        """Count what is being sent. Raises `CreditError`, and counts nothing, where there is no credit for it."""
        if items < 1 or nbytes < 0:
            raise CreditError(f"{self._name}: {items} item(s) of {nbytes} bytes is nothing that can be sent")
        if not self.can_send(session, items, nbytes):
            held_items, held_bytes = self._inflight[session]
            raise CreditError(
                f"{self._name}: no credit for {items} item(s) of {nbytes} bytes of session {session}: in flight are "
                f"{held_items} of {self.max_items} item(s) and {held_bytes} of {self.max_bytes} bytes; "
                "ask can_send first"
            )
        held_items, held_bytes = self._inflight.get(session, (0, 0))
        held_items += items
        held_bytes += nbytes
        self._inflight[session] = (held_items, held_bytes)
        if held_items > self._peak_items:
            self._peak_items = held_items
        if held_bytes > self._peak_bytes:
            self._peak_bytes = held_bytes

    def on_return(self, session: int, items: int, nbytes: int) -> None:
        """Count what the receiver took. Raises `CreditError`, and counts nothing, where that is more than was sent."""
        held_items, held_bytes = self._inflight.get(session, (0, 0))
        left_items, left_bytes = held_items - items, held_bytes - nbytes
        if items < 1 or nbytes < 0 or left_items < 0 or left_bytes < 0 or (left_items == 0 and left_bytes != 0):
            raise CreditError(
                f"{self._name}: {items} item(s) of {nbytes} bytes of session {session} came back, but in flight are "
                f"{held_items} item(s) of {held_bytes} bytes; the receiver has counted wrong"
            )
        if left_items:
            self._inflight[session] = (left_items, left_bytes)
        else:
            # A session that has nothing in flight takes no memory, however many sessions there were.
            del self._inflight[session]

    def inflight(self, session: int) -> tuple[int, int]:
        """Items and bytes of a session that are in flight."""
        return self._inflight.get(session, (0, 0))

    def statistics(self) -> CreditStatistics:
        """What is in flight now and the peaks so far."""
        held = self._inflight.values()
        return CreditStatistics(
            items=sum(items for items, _ in held),
            bytes=sum(nbytes for _, nbytes in held),
            sessions=len(held),
            peak_items=self._peak_items,
            peak_bytes=self._peak_bytes,
            refusals=self._refusals,
        )
