"""How a rank comes to be connected to all others, and how it parts from them."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import torch

from paceline.pipeline.placement import Placement, Route
from paceline.pipeline.topology import Topology, Transport
from paceline.runtime.auth import check_bind, is_loopback, load_curve
from paceline.runtime.channels import Deliver, Inlet, Outlet, ZmqInlet, ZmqOutlet
from paceline.runtime.channels_dist import DistInlet, DistOutlet, Pair, PairReceiver, PairSender
from paceline.runtime.errors import PeerLost, RendezvousError, TransportError
from paceline.runtime.mesh import Mesh, OnFailure
from paceline.runtime.rendezvous import Rendezvous
from paceline.runtime.wire import Buffer, Goodbye, Hello, Message, decode, encode

__all__ = ["Links", "OnLetter"]

OnLetter = Callable[[int, Message, Sequence[Buffer]], None]
"""Takes a decoded message of a peer, with the frames behind its header, on the receiving thread."""

_LOCAL_CHECKSUM_LIMIT = 64 * 1024
"""On one machine larger items carry no checksum: CRC-32 would take about as long as the way itself."""

_MOURN_S = 0.2
_PART_S = 5.0


class _Card(msgspec.Struct, frozen=True):
    """What each rank tells the others about itself before they connect."""

    host: str
    directory: str
    key: bytes


class Links:
    """The sockets to all peers, and the communicators of the routes that go by dist.

    Ranks on one machine meet by ipc in a folder that only their user can enter, and that is gone as soon as all are
    connected; others by tcp. Every rank knows every other, so that whoever dies is missed by all.
    """

    def __init__(self, rendezvous: Rendezvous, topology: Topology, routes: Sequence[Route]) -> None:
        self.rank = rendezvous.rank
        self.senders: dict[int, PairSender] = {}
        self.receivers: dict[int, PairReceiver] = {}
        self.checksum_limit = 0
        self._rendezvous = rendezvous
        self._topology = topology
        self._digest = hashlib.sha256(topology.model_dump_json().encode()).hexdigest()
        self._pairs = sorted(
            {
                (route.source, route.target)
                for route in routes
                if route.source != route.target
                and self.rank in (route.source, route.target)
                and topology.edges[route.edge].via is Transport.dist
            }
        )
        self._greeted: set[int] = set()
        self._greeting = threading.Condition()
        self._failure: BaseException | None = None
        self._on_failure: OnFailure | None = None
        self._on_letter: OnLetter | None = None
        self._folder: Path | None = None
        self._gloo_host = ""
        check_bind(topology.network)
        self._curve = None if topology.network.curve is None else load_curve(topology.network.curve)
        self.mesh = Mesh(self.rank, rendezvous.world_size, topology.network.max_message, self._curve)

    def connect(self, on_letter: OnLetter, on_failure: OnFailure) -> None:
        """Meet, connect and greet all peers. Raises `RendezvousError`, which names those that did not come.

        Letters may come from then on, but items do not before all ranks have called `ready`.
        """
        self._on_letter, self._on_failure = on_letter, on_failure
        rendezvous, network = self._rendezvous, self._topology.network
        rendezvous.join()
        if self.rank == 0:
            self._folder = _socket_folder(rendezvous.run_dir)
        key = b"" if self._curve is None else self._curve.public
        card = _Card(rendezvous.host, "" if self._folder is None else str(self._folder), key)
        payloads = rendezvous.gather("card", msgspec.msgpack.encode(card))
        cards = [msgspec.msgpack.decode(payload, type=_Card) for payload in payloads]
        hosts = {card.host for card in cards}
        if len(hosts) == 1:
            self.checksum_limit = _LOCAL_CHECKSUM_LIMIT
            self._gloo_host = "127.0.0.1"
            address = self.mesh.bind(Path(cards[0].directory))
        else:
            if is_loopback(network.bind) and not is_loopback(rendezvous.address):
                raise RendezvousError(
                    f"the ranks are on {len(hosts)} hosts, but network.bind is {network.bind!r}; set network.bind to "
                    "an address that the hosts reach, and network.curve"
                )
            self.checksum_limit = network.max_message
            self._gloo_host = rendezvous.outward_address()
            address = self._advertised(self.mesh.bind(None, network.bind))
        addresses = [payload.decode() for payload in rendezvous.gather("address", address.encode())]
        self.mesh.connect(rendezvous.token, addresses, [card.key for card in cards])
        self.mesh.start(self._on_message, self._on_broken)
        self._greet()
        for source, target in self._pairs:
            # All ranks walk their pairs in one order, so no two wait for each other.
            self._join_pair(source, target)

    def outlet(self, route: Route) -> Outlet:
        """The sender's end of a route to a peer."""
        edge = self._topology.edges[route.edge]
        limits = edge.inflight, edge.bytes, self._topology.network.max_message
        if edge.via is Transport.zmq:
            return ZmqOutlet(route, *limits, self.mesh, self.checksum_limit)
        return DistOutlet(route, *limits, self.mesh, self.senders[route.target])

    def inlet(self, route: Route, deliver: Deliver) -> Inlet:
        """The receiver's end of a route from a peer."""
        max_message = self._topology.network.max_message
        if self._topology.edges[route.edge].via is Transport.zmq:
            return ZmqInlet(route, deliver, max_message)
        return DistInlet(route, deliver, max_message, self.receivers[route.source])

    def _advertised(self, address: str) -> str:
        """A wildcard is no address to connect to; the one that faces rank 0 is."""
        for wildcard in ("tcp://0.0.0.0:", "tcp://[::]:"):
            if address.startswith(wildcard):
                outward = self._rendezvous.outward_address()
                host = f"[{outward}]" if ":" in outward else outward
                return f"tcp://{host}:{address.removeprefix(wildcard)}"
        return address

    def _greet(self) -> None:
        peers = set(range(self._rendezvous.world_size)) - {self.rank}
        deadline = time.monotonic() + self._rendezvous.timeout_s
        late = set(self.mesh.greet(encode(Hello(self.rank, self._digest)), self._rendezvous.timeout_s))
        with self._greeting:
            self._greeting.wait_for(
                lambda: self._failure is not None or self._greeted >= peers, max(0.0, deadline - time.monotonic())
            )
            missing = late | (peers - self._greeted)
            failure = self._failure
        if failure is not None:
            raise failure
        if missing:
            names = ", ".join(f"rank {peer}" for peer in sorted(missing))
            refused = "".join(f"; the socket of rank {peer} said {why}" for peer, why in self.mesh.refused.items())
            raise RendezvousError(
                f"rank {self.rank} is not connected to {names} after {self._rendezvous.timeout_s:g} s{refused}; check "
                "that the hosts reach one another, and that their CURVE keys are in each other's network.curve.allow",
                missing,
            )

    def _join_pair(self, source: int, target: int) -> None:
        device = torch.device("cpu")
        if all(self._device(rank).type == "cuda" for rank in (source, target)):
            device = self._device(self.rank)
            if str(device) == "cuda":
                device = torch.device("cuda", torch.cuda.current_device())
        rendezvous = self._rendezvous
        pair = Pair(rendezvous.store, source, target, self.rank, device, self._gloo_host, rendezvous.timeout_s)
        if self.rank == source:
            self.senders[target] = PairSender(pair, self.mesh.suspect)
        else:
            self.receivers[source] = PairReceiver(pair, self.mesh.suspect, self._on_broken)

    def _device(self, rank: int) -> torch.device:
        group = Placement(self._topology).group_of_rank(rank)
        return torch.device(self._topology.groups[group].device)

    def ready(self) -> None:
        """Wait until all ranks are; from then on items flow. Raises `RendezvousError`."""
        self._rendezvous.gather("ready", b"")
        self._remove_folder()
        self._rendezvous.leave()
        if not self.receivers:
            self.mesh.adopt()

    def _remove_folder(self) -> None:
        # Connected sockets outlive their names, and what has no name can't be left behind by a kill.
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _on_message(self, peer: int, frames: list[Buffer]) -> None:
        message = decode(frames[0])
        if isinstance(message, Hello):
            if message.topology != self._digest:
                raise RendezvousError(
                    f"rank {peer} runs another topology than rank {self.rank}; give all hosts the same file", [peer]
                )
            with self._greeting:
                self._greeted.add(peer)
                self._greeting.notify_all()
        elif isinstance(message, Goodbye):
            self.mesh.departed.add(peer)
            if message.error:
                self._on_broken(peer, PeerLost(peer, f"it failed: {message.error}"))
            elif self._on_letter is not None:
                self._on_letter(peer, message, frames[1:])
        elif self._on_letter is not None:
            self._on_letter(peer, message, frames[1:])

    def _on_broken(self, peer: int, error: BaseException) -> None:
        with self._greeting:
            self._failure = self._failure or error
            self._greeting.notify_all()
        if self._on_failure is not None:
            self._on_failure(peer, error)

    def close(self, error: BaseException | None = None) -> list[str]:
        """Say goodbye and close everything. With an error the peers hear of it, and nothing is waited for.

        Returns the names of threads that hang in an operation with a peer that does not answer; they end with the
        process.
        """
        fault = error is not None
        patience = _MOURN_S if fault else _PART_S
        hung = [f"send to rank {peer}" for peer, sender in self.senders.items() if not sender.close(patience, fault)]
        reason = "" if error is None else f"{type(error).__name__}: {error}"[:4096]
        goodbye = encode(Goodbye(reason))
        for peer in self._greeted - self.mesh.departed:
            with suppress(TransportError):
                self.mesh.send(peer, [goodbye])
        self.mesh.stop()
        hung += [f"receive from rank {peer}" for peer, end in self.receivers.items() if not end.close(patience, fault)]
        self.mesh.close(patience)
        self._remove_folder()
        self._rendezvous.close(_MOURN_S if fault else 2.0)
        return hung


def _socket_folder(run_dir: Path | None) -> Path:
    """A new folder of mode 0700, inside the run's where the path of a socket in it is not too long for one."""
    if run_dir is not None and run_dir.is_dir() and len(str(run_dir)) < 80:
        return Path(tempfile.mkdtemp(prefix="s-", dir=run_dir))
    return Path(tempfile.mkdtemp(prefix="paceline-"))
