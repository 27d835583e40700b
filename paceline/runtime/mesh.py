"""The ZMQ sockets of one rank: a ROUTER that hears from all peers, and a DEALER to each of them.

Messages go out on DEALERs only and come in on the ROUTER only, so every socket has one direction. The worker sends
directly, under a lock per peer. A thread receives until all ranks are connected, and further on where tensors come by
torch.distributed: their receives have to be posted while the worker computes. Elsewhere the worker takes over (`adopt`)
and receives between its units of compute (`pump`). ZMQ's own threads fill the queue meanwhile, and a second Python
thread would only take the interpreter from the compute. ZMQ's own queues bound nothing that matters: what may be sent
is decided by credits, before a message comes here.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import zmq
from torch import Tensor
from zmq.utils.monitor import parse_monitor_message

from paceline.runtime.auth import CurveKeys, start_authenticator
from paceline.runtime.errors import PeerLost, RendezvousError
from paceline.runtime.wire import MAX_HEADER, MAX_TENSORS, Buffer

__all__ = ["Mesh", "OnFailure", "OnMessage"]

OnMessage = Callable[[int, list[Buffer]], None]
OnFailure = Callable[[int, BaseException], None]

_COPY_BELOW = 256 * 1024
"""Smaller buffers are copied into ZMQ's memory, which is cheaper than tracking them."""

_GRACE_S = 0.3
"""How long after its socket closed a peer's last words may still arrive."""

_AUTH_FAILURES = (
    zmq.Event.HANDSHAKE_FAILED_AUTH | zmq.Event.HANDSHAKE_FAILED_PROTOCOL | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
)

_Held = deque[tuple[zmq.MessageTracker, Sequence[Tensor]]]


class Mesh:
    """Sends frames to peers and hands theirs to `on_message(rank, frames)` on the receiving thread.

    `on_failure(rank, error)` hears, on the same thread, when a peer's socket goes away without a goodbye and when
    `on_message` raises. A peer proves who it is by a socket identity that begins with the run's token; other
    connections are ignored and counted in `strangers`.
    """

    def __init__(self, rank: int, world_size: int, max_message: int, curve: CurveKeys | None = None) -> None:
        self.rank = rank
        self.strangers = 0
        self.adopted = False
        """Whether the worker receives, by `pump`; else a thread does."""
        self.departed: set[int] = set()
        """Peers that said goodbye; nothing is sent to them any more, and their sockets may close."""
        self.refused: dict[int, str] = {}
        """Peers whose socket turned our keys down, and how."""
        self._peers = [peer for peer in range(world_size) if peer != rank]
        self._max_message = max(max_message, MAX_HEADER)
        self._curve = curve
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.max_sockets = max(1023, 3 * world_size + 64)
        self._authenticator = None if curve is None else start_authenticator(self._context, curve)
        self._router = self._socket(zmq.ROUTER)
        self._router.router_mandatory = True
        self._dealers: dict[int, zmq.Socket[bytes]] = {}
        self._monitors: dict[zmq.Socket[bytes], int] = {}
        self._locks = {peer: threading.Lock() for peer in self._peers}
        self._held: dict[int, _Held] = {peer: deque() for peer in self._peers}
        self._suspects: dict[int, tuple[float, str]] = {}
        self._thread: threading.Thread | None = None
        self._poller = zmq.Poller()
        self._on_message: OnMessage | None = None
        self._on_failure: OnFailure | None = None
        self._token = b""
        self._stop_lock = threading.Lock()
        self._stop_in = self._context.socket(zmq.PAIR)
        self._stop_out = self._context.socket(zmq.PAIR)
        self._stop_in.bind("inproc://stop")
        self._stop_out.connect("inproc://stop")

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.linger = 0
        socket.maxmsgsize = self._max_message
        socket.sndhwm = 0
        return socket

    def bind(self, directory: Path | None, host: str = "127.0.0.1") -> str:
        """Listen by ipc in a folder, or by tcp on a free port of `host`; returns the address to connect to."""
        if directory is not None:
            address = f"ipc://{directory}/{self.rank}"
            if len(address) > 100:
                raise RendezvousError(f"the socket path {address} is too long; set TMPDIR to a short path")
        else:
            if self._curve is not None:
                self._router.curve_server = True
                self._router.curve_publickey = self._curve.public
                self._router.curve_secretkey = self._curve.secret
            # A host that vanishes sends no FIN; a process that hangs is the supervisor's to judge.
            self._router.heartbeat_ivl = 5_000
            self._router.heartbeat_timeout = 30_000
            self._router.ipv6 = ":" in host
            address = f"tcp://[{host.strip('[]')}]:*" if ":" in host else f"tcp://{host}:*"
        try:
            self._router.bind(address)
        except zmq.ZMQError as error:
            raise RendezvousError(f"rank {self.rank} can't listen on {address}: {error}; check network.bind") from error
        return self._router.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")

    def connect(self, token: bytes, addresses: Sequence[str], keys: Sequence[bytes]) -> None:
        """Connect a DEALER to the address of each peer; `keys` are the peers' public CURVE keys, where used."""
        self._token = token
        if self._curve is not None:
            for peer in self._peers:
                self._curve.check_peer(peer, keys[peer])
        for peer in self._peers:
            dealer = self._dealers[peer] = self._socket(zmq.DEALER)
            dealer.identity = token + self.rank.to_bytes(4, "big")
            dealer.immediate = True
            if addresses[peer].startswith("tcp"):
                dealer.heartbeat_ivl = 5_000
                dealer.heartbeat_timeout = 30_000
                dealer.ipv6 = "[" in addresses[peer]
                if self._curve is not None:
                    dealer.curve_serverkey = keys[peer]
                    dealer.curve_publickey = self._curve.public
                    dealer.curve_secretkey = self._curve.secret
            self._monitors[dealer.get_monitor_socket(zmq.Event.DISCONNECTED | _AUTH_FAILURES)] = peer
            dealer.connect(addresses[peer])

    def start(self, on_message: OnMessage, on_failure: OnFailure) -> None:
        """Start the receiving thread."""
        self._on_message, self._on_failure = on_message, on_failure
        for socket in (self._router, self._stop_in, *self._monitors):
            self._poller.register(socket, zmq.POLLIN)
        self._thread = threading.Thread(target=self._receive, name=f"paceline-mesh-{self.rank}", daemon=True)
        self._thread.start()

    def adopt(self) -> None:
        """End the receiving thread; from now on the caller's thread receives, by `pump`."""
        self.stop()
        self.adopted = True

    def pump(self, timeout_s: float | None) -> None:
        """Hand over the messages that have come; with none there, wait for one for at most `timeout_s` seconds."""
        if self._drain() or timeout_s == 0:
            return
        self._look(timeout_s)

    def greet(self, frame: Buffer, timeout_s: float) -> list[int]:
        """Send a first frame to every peer as soon as it is connected; returns the peers that were not in time."""
        deadline = time.monotonic() + timeout_s
        late = []
        for peer, dealer in self._dealers.items():
            with self._locks[peer]:
                if dealer.poll(max(0, int((deadline - time.monotonic()) * 1000)), zmq.POLLOUT):
                    dealer.send(frame, zmq.DONTWAIT)
                else:
                    late.append(peer)
        return late

    def send(self, peer: int, frames: Sequence[Buffer], tensors: Sequence[Tensor] = ()) -> None:
        """Send frames as one message. Raises `PeerLost` where the peer is not there any more.

        `tensors` own the memory of the frames and are held until ZMQ has written it.
        """
        if peer in self.departed:
            raise PeerLost(peer, "it has ended its run, but was sent a message")
        dealer, held = self._dealers[peer], self._held[peer]
        last = len(frames) - 1
        with self._locks[peer]:
            while held and held[0][0].done:
                held.popleft()
            try:
                for index, frame in enumerate(frames):
                    flags = zmq.DONTWAIT | zmq.SNDMORE if index < last else zmq.DONTWAIT
                    if len(frame) < _COPY_BELOW:
                        dealer.send(frame, flags)
                    else:
                        held.append((dealer.send(frame, flags, copy=False, track=True), tensors))
            except zmq.Again:
                raise PeerLost(peer, self._suspects.get(peer, (0, "its socket is gone"))[1]) from None

    def suspect(self, peer: int, reason: str) -> None:
        """Something broke towards a peer: unless its goodbye arrives soon, it is lost."""
        if peer not in self.departed:
            self._suspects.setdefault(peer, (time.monotonic() + _GRACE_S, reason))
            # Whoever receives waits with no timeout while nobody is suspected.
            self.wake()

    def wake(self) -> None:
        """End the wait of whoever receives; may be called from any thread."""
        with contextlib.suppress(zmq.ZMQError), self._stop_lock:
            self._stop_out.send(b"look", zmq.DONTWAIT)

    def _receive(self) -> None:
        while self._look(None):
            pass

    def _look(self, timeout_s: float | None) -> bool:
        """Wait for news and see to it. False once `stop` was called."""
        if self._suspects:
            timeout_s = 0.05 if timeout_s is None else min(timeout_s, 0.05)
        for socket, _ in self._poller.poll(None if timeout_s is None else math.ceil(timeout_s * 1000)):
            if socket is self._router:
                self._drain()
            elif socket is self._stop_in:
                if socket.recv() == b"stop":
                    return False
            else:
                self._on_event(self._monitors[socket], socket)
        now = time.monotonic()
        for peer, (deadline, reason) in list(self._suspects.items()):
            if peer in self.departed:
                del self._suspects[peer]
            elif now > deadline:
                self._suspects[peer] = (float("inf"), reason)
                self._fail(peer, PeerLost(peer, reason))
        return True

    def _fail(self, peer: int, error: BaseException) -> None:
        if self._on_failure is not None:
            self._on_failure(peer, error)

    def _drain(self) -> bool:
        """Receive what is there, in turns of bounded length so that events of the monitors are seen too."""
        for turn in range(64):
            try:
                identity = self._router.recv(zmq.DONTWAIT)
            except zmq.Again:
                return turn > 0
            frames: list[Buffer] = []
            more = True
            while more:
                frame = self._router.recv(copy=False)
                more = frame.more
                if len(frames) <= MAX_TENSORS + 1:
                    frames.append(frame.buffer)
            rank = int.from_bytes(identity[-4:], "big")
            if identity[:-4] != self._token or rank not in self._locks:
                self.strangers += 1
                continue
            try:
                if self._on_message is not None:
                    self._on_message(rank, frames)
            except Exception as error:
                self._fail(rank, error)
        return True

    def _on_event(self, peer: int, monitor: zmq.Socket[bytes]) -> None:
        event = parse_monitor_message(monitor.recv_multipart())
        if event["event"] == zmq.Event.DISCONNECTED:
            if peer not in self.departed:
                self._suspects.setdefault(peer, (time.monotonic() + _GRACE_S, "its process has ended"))
        else:
            self.refused[peer] = zmq.Event(event["event"]).name or "no"

    def stop(self) -> None:
        """End the receiving thread."""
        if self._thread is not None:
            with self._stop_lock:
                self._stop_out.send(b"stop")
            self._thread.join()
            self._thread = None

    def close(self, linger_s: float) -> None:
        """Close all sockets; what was sent gets at most `linger_s` seconds to leave. May be called once more."""
        if self._context.closed:
            return
        self.stop()
        # In this order: an event for a monitor that is closed already blocks ZMQ, and then us, for ever.
        for dealer in self._dealers.values():
            dealer.disable_monitor()
            dealer.close(int(linger_s * 1000))
        for monitor in self._monitors:
            monitor.close(0)
        self._stop_in.close(0)
        self._stop_out.close(0)
        if self._authenticator is not None:
            self._authenticator.stop()
        # The ROUTER closes only when all has left: peers take its closing for our end.
        deadline = time.monotonic() + linger_s
        while any(not tracker.done for held in self._held.values() for tracker, _ in held):
            if time.monotonic() > deadline:
                break
            time.sleep(0.001)
        self._router.close(0)
        # Not term(), which would wait for ever for a socket that a failed start left open.
        self._context.destroy(0)
        self._held.clear()
