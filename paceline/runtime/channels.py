"""Channels: one edge from one rank to another. The sender holds an `Outlet`, the receiver an `Inlet`.

All transports share what is here: credits, sequence numbers, counts. They differ in how an outlet transmits an item,
and in how an inlet comes by it and gives a credit back. The local channel, whose two ends are on one rank, is here; zmq
is in `channels_zmq.py`, torch.distributed in `channels_dist.py`.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from paceline.pipeline.credits import CreditLedger
from paceline.pipeline.placement import Route
from paceline.pipeline.topology import Topology, Transport
from paceline.runtime.errors import ChannelError, OversizedError, WireError
from paceline.runtime.mesh import Mesh
from paceline.runtime.result import EdgeUse
from paceline.runtime.wire import (
    Buffer,
    Data,
    Returned,
    canonical,
    check_data,
    encode_item,
    item_from,
    read_tensors,
    tensor_bytes,
)
from paceline.stages.item import Item

__all__ = [
    "ChannelStatistics",
    "CreditReturns",
    "Deliver",
    "Inlet",
    "LocalInlet",
    "LocalOutlet",
    "Outlet",
    "Route",
    "ZmqInlet",
    "ZmqOutlet",
]


Deliver = Callable[[Item, "Inlet"], None]
"""Hands an arrived item to the worker's inbox; called from any thread."""


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """What this rank knows of one channel: the sender the first half, the receiver the second, a local channel both.

    `inflight_*` are over all sessions, `peak_*` of the fullest session; `refusals` counts how often credit was missing.
    """

    route: Route
    transport: Transport
    sent_items: int = 0
    sent_bytes: int = 0
    inflight_items: int = 0
    inflight_bytes: int = 0
    peak_items: int = 0
    peak_bytes: int = 0
    refusals: int = 0
    received_items: int = 0
    received_bytes: int = 0
    returned_items: int = 0
    """Items taken by the worker or discarded, whose credit went back."""


class Outlet(ABC):
    """The sender's end. Used by the worker thread; credits come back on any thread."""

    transport: Transport

    def __init__(self, route: Route, max_items: int, max_bytes: int, max_message: int) -> None:
        self.route = route
        self.name = f"edge {route.edge} to rank {route.target}"
        self._ledger = CreditLedger(max_items, max_bytes, self.name)
        self._max_message = max_message
        self._lock = threading.RLock()
        self._sequence = 0
        self._bytes = 0

    def can_send(self, session: int, items: int, nbytes: int) -> bool:
        """Whether there is credit. Raises `CreditError` where there never will be."""
        with self._lock:
            return self._ledger.can_send(session, items, nbytes)

    def send(self, item: Item) -> None:
        """Send an item, without waiting for the receiver.

        From now on its tensors belong to the channel: nobody may write to them any more, as some transports read them
        later and a local one shares them. Raises `CreditError` without credit, `WireError` for what can't travel.
        """
        nbytes = item.nbytes
        if nbytes > self._max_message:
            raise OversizedError(f"{self.name}: an item of {nbytes} bytes; network.max_message is {self._max_message}")
        session = item.key.session
        with self._lock:
            self._ledger.on_send(session, nbytes)
            try:
                self._transmit(item, self._sequence)
            except WireError:
                self._ledger.on_return(session, 1, nbytes)
                raise
            self._sequence += 1
            self._bytes += nbytes

    def credit(self, session: int, items: int, nbytes: int) -> None:
        """The receiver took these. Raises `CreditError` where that is more than was sent."""
        with self._lock:
            self._ledger.on_return(session, items, nbytes)

    @abstractmethod
    def _transmit(self, item: Item, sequence: int) -> None:
        """Bring the item on its way. A `WireError` says that nothing of it left."""

    def statistics(self) -> ChannelStatistics:
        """Counts of the sender."""
        with self._lock:
            credits = self._ledger.statistics()
            return ChannelStatistics(
                route=self.route,
                transport=self.transport,
                sent_items=self._sequence,
                sent_bytes=self._bytes,
                inflight_items=credits.items,
                inflight_bytes=credits.bytes,
                peak_items=credits.peak_items,
                peak_bytes=credits.peak_bytes,
                refusals=credits.refusals,
            )

    def use(self) -> EdgeUse:
        """What was sent, for the report of the run."""
        sent = self.statistics()
        counts = sent.sent_items, sent.sent_bytes, sent.peak_items, sent.peak_bytes
        return EdgeUse(*self.route, sent.transport.value, *counts)


class Inlet(ABC):
    """The receiver's end."""

    transport: Transport

    def __init__(self, route: Route, deliver: Deliver) -> None:
        self.route = route
        self._deliver = deliver
        self._sequence = 0
        self._items = 0
        self._bytes = 0
        self._returned = 0
        self._lock = threading.Lock()

    def arrived(self, item: Item) -> None:
        """Count an item and hand it to the inbox; one thread at a time."""
        self._items += 1
        self._bytes += item.nbytes
        self._deliver(item, self)

    def expect(self, sequence: int) -> None:
        """Check that nothing is missing or repeated before this item. Raises `ChannelError`."""
        if sequence != self._sequence:
            raise ChannelError(
                f"edge {self.route.edge} from rank {self.route.source}: item number {sequence} came in place of "
                f"{self._sequence}, so items were lost or repeated; restart the run"
            )
        self._sequence += 1

    def give_back(self, item: Item) -> tuple[int, int, int]:
        """Count the credit of one item; returns its session, 1 and its bytes, as the sender has to hear them."""
        with self._lock:
            self._returned += 1
        return item.key.session, 1, item.nbytes

    def statistics(self, sender: ChannelStatistics | None = None) -> ChannelStatistics:
        """Counts of the receiver, added to those of the sender where it is on the same rank."""
        return replace(
            sender or ChannelStatistics(self.route, self.transport),
            received_items=self._items,
            received_bytes=self._bytes,
            returned_items=self._returned,
        )


class LocalInlet(Inlet):
    """The receiver's end on the sender's own rank."""

    transport = Transport.local


class LocalOutlet(Outlet):
    """Hands the item itself over; tensors are copied only where their strides or alignment would differ from what
    another transport delivers."""

    transport = Transport.local

    def __init__(self, route: Route, max_items: int, max_bytes: int, max_message: int, inlet: LocalInlet) -> None:
        super().__init__(route, max_items, max_bytes, max_message)
        self.inlet = inlet

    def _transmit(self, item: Item, sequence: int) -> None:
        tensors = tuple([canonical(tensor) for tensor in item.tensors])
        self.inlet.expect(sequence)
        self.inlet.arrived(Item(item.key, tensors, item.meta, item.epoch))


class ZmqOutlet(Outlet):
    """Sends on the worker's own thread; nothing is copied but what is small."""

    transport = Transport.zmq

    def __init__(
        self, route: Route, max_items: int, max_bytes: int, max_message: int, mesh: Mesh, checksum_limit: int
    ) -> None:
        super().__init__(route, max_items, max_bytes, max_message)
        self._mesh = mesh
        self._checksum_limit = checksum_limit

    def _transmit(self, item: Item, sequence: int) -> None:
        header, tensors = encode_item(item, sequence, checksum_limit=self._checksum_limit)
        self._mesh.send(self.route.target, [header, *map(tensor_bytes, tensors)], tensors)


class ZmqInlet(Inlet):
    """Copies the frames of a checked message into tensors of its own, on the mesh's receiving thread."""

    transport = Transport.zmq

    def __init__(self, route: Route, deliver: Deliver, max_message: int) -> None:
        super().__init__(route, deliver)
        self._max_message = max_message

    def receive(self, data: Data, buffers: Sequence[Buffer]) -> None:
        """Take in one message. Raises `WireError` or `ChannelError`."""
        check_data(data, [len(buffer) for buffer in buffers], self._max_message)
        self.expect(data.sequence)
        self.arrived(item_from(data, read_tensors(data, buffers)))


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
