"""The one object by which a rank's worker talks to other ranks."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from types import TracebackType
from typing import Self

from paceline.pipeline.topology import Topology, Transport
from paceline.runtime.channels import (
    ChannelStatistics,
    CreditReturns,
    Inlet,
    LocalInlet,
    LocalOutlet,
    Outlet,
    Route,
    ZmqInlet,
)
from paceline.runtime.channels_dist import DistInlet, use_here
from paceline.runtime.errors import ChannelError, MalformedError, MisroutedError, OversizedError, PeerLost
from paceline.runtime.inbox import Inbox
from paceline.runtime.links import Links
from paceline.runtime.rendezvous import Rendezvous
from paceline.runtime.result import EdgeUse
from paceline.runtime.wire import Buffer, Control, CreditReturn, Data, Goodbye, Message, Returned, encode
from paceline.stages.item import Item, Key

__all__ = ["Endpoint"]


class Endpoint:
    """Sends items to other ranks and receives theirs; credits, epochs and failures included.

    `routes` are all routes of the run, or at least those that begin or end at this rank; the run can do without the
    ranks in `expendable`. The worker thread calls everything here; other threads only deliver. Use it as a context
    manager: leaving it with an exception tells the peers, who then raise `PeerLost` with its text.
    """

    def __init__(
        self,
        rendezvous: Rendezvous,
        topology: Topology,
        routes: Sequence[Route],
        expendable: Collection[int] = (),
    ) -> None:
        self.lost: set[int] = set()
        """Expendable peers that are gone. Nothing is sent to them, and the run goes on."""
        self._expendable = frozenset(expendable)
        self.rank = rendezvous.rank
        self.world_size = rendezvous.world_size
        self.hung: list[str] = []
        """After `close`: threads that hang in an operation with a peer that does not answer."""
        self._rendezvous = rendezvous
        self._topology = topology
        self._routes = [Route(*route) for route in routes if self.rank in route[1:]]
        self._inbox = Inbox()
        self._outlets: dict[tuple[int, int], Outlet] = {}
        self._inlets: dict[tuple[int, int], Inlet] = {}
        self._controls: deque[tuple[int, str, bytes]] = deque()
        self._failure: BaseException | None = None
        self._failing = threading.Lock()
        self._returns = CreditReturns(topology, self._send_credits)
        self._worker = threading.get_ident()
        self._links: Links | None = None
        self._started = self._closed = False

    def start(self) -> None:
        """Connect to all ranks; returns when all are connected to all.

        Raises `RendezvousError`, which names the ranks that did not come within `network.connect_timeout_s`, and
        `ChannelError` where a route can't be. With one rank nothing is opened.
        """
        if self._started:
            raise ChannelError("the endpoint has been started before; make a new one")
        self._started = True
        if self.world_size > 1:
            self._links = Links(self._rendezvous, self._topology, self._routes)
            self._links.connect(self._on_letter, self._on_failure)
        for route in self._routes:
            self._open(route)
        if self._links is not None:
            self._links.ready()

    def _open(self, route: Route) -> None:
        edge, source, target = route
        spec = self._topology.edges[edge]
        if source == target:
            inlet = LocalInlet(route, self._deliver)
            self._inlets[edge, source] = inlet
            self._outlets[edge, target] = LocalOutlet(
                route, spec.inflight, spec.bytes, self._topology.network.max_message, inlet
            )
            return
        links = self._links
        if links is None or not (0 <= source < self.world_size and 0 <= target < self.world_size):
            raise ChannelError(f"{route} leaves the world of {self.world_size} rank(s)")
        if spec.via is Transport.local:
            raise ChannelError(f"edge {edge} is `via: local`, but joins ranks {source} and {target}; use zmq or dist")
        if source == self.rank:
            self._outlets[edge, target] = links.outlet(route)
        else:
            self._inlets[edge, source] = links.inlet(route, self._deliver)

    def close(self, error: BaseException | None = None) -> None:
        """Part from the peers and release everything; with an error they hear of it. May be called again."""
        if self._closed:
            return
        self._closed = True
        if self._links is not None:
            self.hung = self._links.close(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(error)

    def expendable(self, rank: int) -> bool:
        """Whether the run can do without a rank."""
        return rank in self._expendable

    def can_send(self, edge: int, target_rank: int, session: int, items: int, nbytes: int) -> bool:
        """Whether there is credit for so many items of together `nbytes` bytes.

        Raises `CreditError` where there can never be, as they pass the limits of the empty edge.
        """
        return self._outlet(edge, target_rank).can_send(session, items, nbytes)

    def send(self, target_rank: int, item: Item) -> None:
        """Send an item; its tensors must not be written to any more. Never waits for the receiver.

        Raises `CreditError` without credit, `WireError` where the item can't travel, and what `check` raises.
        """
        if self._failure is not None:
            self.check()
        try:
            self._outlet(item.key.edge, target_rank).send(item)
        except PeerLost as error:
            if target_rank not in self._expendable:
                raise
            self._on_failure(target_rank, error)

    def _outlet(self, edge: int, target: int) -> Outlet:
        try:
            return self._outlets[edge, target]
        except KeyError:
            raise MisroutedError(f"there is no route by edge {edge} from rank {self.rank} to rank {target}") from None

    def edge_bytes(self, edge: int) -> int:
        """Most bytes that a session may have in flight on an edge."""
        return self._topology.edges[edge].bytes

    def has(self, key: Key) -> bool:
        """Whether an item has arrived and waits to be taken."""
        return self._inbox.has(key)

    def arrived(self, edge: int, source: int) -> list[Key]:
        """The keys of the items that came by an edge from a rank and wait to be taken, in the order of arrival."""
        return self._inbox.arrived(edge, source)

    def take(self, key: Key) -> Item:
        """Take an item that has arrived; its credit goes back, at the latest with the next `wait` or `flush`.

        Raises `ChannelError` where it has not arrived.
        """
        item, source = self._inbox.take(key)
        self._give_back([(item, source)])
        return use_here(item)

    def take_all(self, keys: Iterable[Key]) -> list[Item]:
        """`take` of several items, whose credits go back in one message for each sender."""
        arrivals = [self._inbox.take(key) for key in keys]
        self._give_back(arrivals)
        return [use_here(item) for item, _ in arrivals]

    def open_epoch(self, session: int, epoch: int) -> int:
        """Begin a newer epoch of a session: what older ones sent is discarded, here and on arrival. Returns how many
        waiting items that was. Raises `ChannelError` where the epoch is not newer.
        """
        discarded = self._inbox.open_epoch(session, epoch)
        self._give_back(discarded)
        self.flush()
        return len(discarded)

    def _give_back(self, arrivals: Sequence[tuple[Item, int]]) -> None:
        """Return credits: at once on this rank; to others when half an edge's credit is owed, or at the next `wait`."""
        for item, source in arrivals:
            edge = item.key.edge
            session, items, nbytes = self._inlets[edge, source].give_back(item)
            if source == self.rank:
                self._outlets[edge, source].credit(session, items, nbytes)
                self._inbox.changed()
            else:
                self._returns.owe(source, edge, session, items, nbytes)

    def flush(self) -> None:
        """Send all credit that is owed; `wait` does so before it sleeps."""
        self._returns.flush()

    def _send_credits(self, source: int, returned: Sequence[Returned]) -> None:
        links = self._links
        if links is None or source in links.mesh.departed:
            return
        try:
            links.mesh.send(source, [encode(CreditReturn(tuple(returned)))])
        except PeerLost as error:
            # What it sent is here and good. If it left without a goodbye, check() will say so.
            links.mesh.suspect(source, error.reason)

    @property
    def version(self) -> int:
        """Rises with every item, credit, control message and failure."""
        return self._inbox.version

    def pump(self) -> None:
        """Take in what has come, where no thread does; call it between units of compute."""
        if self._links is not None and self._links.mesh.adopted:
            self._links.mesh.pump(0)

    def wait(self, seen: int, timeout: float | None = None) -> int:
        """Sleep while the version is `seen`, for at most `timeout` seconds; returns the version then.

        Read `version` first, then look for work, then wait with what was read: nothing is missed in between. Raises
        what `check` raises, as after a failure what is waited for may never come.
        """
        self.flush()
        if self._links is not None and self._links.mesh.adopted:
            deadline = None if timeout is None else time.monotonic() + timeout
            while self._inbox.version == seen and (deadline is None or time.monotonic() < deadline):
                self._links.mesh.pump(None if deadline is None else max(0.0, deadline - time.monotonic()))
            version = self._inbox.version
        else:
            version = self._inbox.wait(seen, timeout)
        if self._failure is not None:
            self.check()
        return version

    def check(self) -> None:
        """Raise `PeerLost`, `ChannelError` or `WireError` where a peer or a channel has failed."""
        if self._failure is not None:
            raise self._failure

    def control(self, target_rank: int, kind: str, payload: bytes = b"") -> None:
        """Send a message that is no item; few and small, as no credit bounds them. Any rank can be reached.

        Raises `PeerLost` where the rank is gone.
        """
        if target_rank == self.rank:
            self._controls.append((self.rank, kind, payload))
            self._inbox.changed()
            return
        if len(payload) > self._topology.network.max_message:
            raise OversizedError(f"a control message of {len(payload)} bytes; raise network.max_message")
        if self._links is None or not 0 <= target_rank < self.world_size:
            raise MisroutedError(f"there is no rank {target_rank} in a world of {self.world_size}")
        self._links.mesh.send(target_rank, [encode(Control(kind, len(payload))), payload])

    def controls(self) -> list[tuple[int, str, bytes]]:
        """The control messages that came since the last call: rank, kind and payload, in order for each rank."""
        controls = []
        while self._controls:
            controls.append(self._controls.popleft())
        return controls

    @property
    def departed(self) -> frozenset[int]:
        """Ranks that ended their run and left. All their headers have arrived (tensors of a dist edge may still be on
        their way), and nothing can be sent to them."""
        return frozenset() if self._links is None else frozenset(self._links.mesh.departed)

    def _deliver(self, item: Item, inlet: Inlet) -> None:
        source = inlet.route.source
        if not self._inbox.put(item, source):
            self._give_back([(item, source)])
        self._wake()

    def wake(self) -> None:
        """End the worker's `wait`, or its next one: another thread has news for it that is no message."""
        self._inbox.changed()
        self._wake()

    def _wake(self) -> None:
        """End the worker's wait for messages, where another thread has news for it."""
        links = self._links
        if links is not None and links.mesh.adopted and threading.get_ident() != self._worker:
            links.mesh.wake()

    def _on_letter(self, peer: int, message: Message, frames: Sequence[Buffer]) -> None:
        match message:
            case Data():
                inlet = self._inlets.get((message.edge, peer))
                if isinstance(inlet, ZmqInlet) and not message.external:
                    inlet.receive(message, frames)
                elif isinstance(inlet, DistInlet) and message.external:
                    inlet.receive(message, [len(frame) for frame in frames])
                else:
                    raise MisroutedError(f"an item for edge {message.edge}, which does not come that way")
            case CreditReturn():
                for returned in message.returned:
                    outlet = self._outlets.get((returned.edge, peer))
                    if outlet is None:
                        raise MisroutedError(f"credit for edge {returned.edge}, which does not go there")
                    outlet.credit(returned.session, returned.items, returned.nbytes)
                self._inbox.changed()
            case Control():
                if [len(frame) for frame in frames] != [message.nbytes]:
                    raise MalformedError(f"a control message of {message.nbytes} bytes with other frames")
                self._controls.append((peer, message.kind, bytes(frames[0])))
                self._inbox.changed()
            case Goodbye():
                self._inbox.changed()

    def _on_failure(self, peer: int, error: BaseException) -> None:
        if peer in self._expendable and self._links is not None:
            self.lost.add(peer)
            self._links.mesh.departed.add(peer)
            self._inbox.changed()
            self._wake()
            return
        if not isinstance(error, PeerLost):
            cause, error = error, ChannelError(f"what came from rank {peer} is refused: {error}")
            error.__cause__ = cause
        with self._failing:
            if self._failure is None:
                self._failure = error
        self._inbox.changed()
        self._wake()

    def statistics(self) -> list[ChannelStatistics]:
        """What this rank knows of each of its channels: the sender's counts, the receiver's, or both where local."""
        sides: dict[Route, ChannelStatistics] = {}
        for outlet in self._outlets.values():
            sides[outlet.route] = outlet.statistics()
        for inlet in self._inlets.values():
            sides[inlet.route] = inlet.statistics(sides.get(inlet.route))
        return [sides[route] for route in sorted(sides)]

    def discarded(self) -> dict[int, int]:
        """Items of old epochs that were thrown away here, by edge."""
        return dict(self._inbox.discarded)

    def uses(self) -> list[EdgeUse]:
        """What this rank sent by each of its channels, for the report of the run."""
        return [outlet.use() for _, outlet in sorted(self._outlets.items())]
