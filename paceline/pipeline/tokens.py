"""What lies on the edges: items that arrived and credits in use. The state that simulator and liveness check share."""

from __future__ import annotations

from paceline.pipeline.credits import CreditLedger
from paceline.pipeline.key import Key
from paceline.pipeline.program import Give, Unit
from paceline.pipeline.topology import FrameTopology

__all__ = ["Tokens"]


class Tokens:
    """Arrived items and one credit ledger an edge, under the limits of a topology.

    A unit may run once all it takes has arrived and all it gives has credit. Its credits are held from its start on,
    and what it takes makes room again at its start.
    """

    def __init__(self, topology: FrameTopology) -> None:
        self.arrived: dict[Key, int] = {}
        """Bytes of every item that arrived and was not yet taken."""
        self._held: set[Key] = set()
        """Those of them that their receivers had from the start, for which no sender holds credit"""
        self.ledgers = [
            CreditLedger(edge.inflight, edge.bytes, f"edge {index} ({edge.source} -> {edge.target})")
            for index, edge in enumerate(topology.edges)
        ]

    def ready(self, unit: Unit) -> bool:
        """Whether a unit may run now."""
        arrived = self.arrived
        for key in unit.takes:
            if key not in arrived:
                return False
        return not unit.gives or self.refused(unit) is None

    def absent(self, unit: Unit) -> Key | None:
        """The first item that a unit waits for."""
        return next((key for key in unit.takes if key not in self.arrived), None)

    def refused(self, unit: Unit) -> Give | None:
        """The first item that a unit has no credit for. A unit that gives several items to one edge needs credit for
        all of them."""
        for index, give in enumerate(unit.gives):
            ledger = self.ledgers[give.edge]
            items, nbytes = ledger.inflight(unit.session)
            for other in unit.gives[: index + 1]:
                if other.edge == give.edge:
                    items += 1
                    nbytes += other.nbytes
            if items > ledger.max_items or nbytes > ledger.max_bytes:
                return give
        return None

    def start(self, unit: Unit) -> list[tuple[Key, int]]:
        """Take a unit's items and hold credit for what it will give. Returns the items taken with their bytes, whose
        credits have to go back to their senders by `free`."""
        taken = [(key, self.arrived.pop(key)) for key in unit.takes]
        if self._held:
            taken = [(key, nbytes) for key, nbytes in taken if key not in self._held]
            self._held.difference_update(unit.takes)
        for give in unit.gives:
            self.ledgers[give.edge].on_send(unit.session, give.nbytes)
        return taken

    def hold(self, key: Key, nbytes: int) -> None:
        """An item is at its receiver from the start: it came in an earlier life of the session."""
        self.arrived[key] = nbytes
        self._held.add(key)

    def arrive(self, key: Key, nbytes: int) -> None:
        """An item has come."""
        self.arrived[key] = nbytes

    def free(self, key: Key, nbytes: int) -> None:
        """The sender of an item hears that it was taken."""
        self.ledgers[key.edge].on_return(key.session, 1, nbytes)
