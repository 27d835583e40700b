"""The dist channel: headers by ZMQ, tensors by torch.distributed (gloo between CPUs, NCCL between GPUs).

Every directed pair of ranks has a communicator of its own, made up front, so that a fault or a stop towards one peer
touches no other. It is built directly on a prefixed store, by the two ranks alone, in place of `new_group`, which all
ranks would have to enter in the same order. All edges of a pair share it; headers and tensors go in one order.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store

from paceline.pipeline.placement import Route
from paceline.pipeline.topology import Transport
from paceline.runtime.channels import Deliver, Inlet, Outlet
from paceline.runtime.errors import RendezvousError
from paceline.runtime.mesh import Mesh
from paceline.runtime.wire import Data, TensorSpec, check_data, empty_tensor, encode_item, item_from
from paceline.stages.item import Item

__all__ = ["DistInlet", "DistOutlet", "Pair", "PairReceiver", "PairSender", "use_here"]

OnBroken = Callable[[int, str], None]
"""Hears that the communicator with a rank failed, and how."""

_NEVER = timedelta(days=365)
"""gloo and NCCL end a communicator when an operation times out, so none ever does: silence is the supervisor's to
judge."""

_SENDER, _RECEIVER = 0, 1


class Pair:
    """The communicator of one directed pair, and how an operation on it is waited for.

    gloo listens at `host` alone: left to itself it takes the address that the machine's name resolves to.
    """

    def __init__(
        self, store: Store, source: int, target: int, rank: int, device: torch.device, host: str, timeout_s: float
    ) -> None:
        self.device = device
        self.peer = target if rank == source else source
        place = _SENDER if rank == source else _RECEIVER
        prefix = PrefixStore(f"pair/{source}-{target}", store)
        self._backend: Any
        try:
            if device.type == "cuda":
                options = dist.ProcessGroupNCCL.Options()
                options._timeout = _NEVER
                self._backend = dist.ProcessGroupNCCL(prefix, place, 2, options)
                self._backend.eager_connect_single_device(device)
            else:
                gloo: Any = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
                gloo._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
                gloo._timeout = timedelta(seconds=timeout_s)
                self._backend = dist.ProcessGroupGloo(prefix, place, 2, gloo)
                self._backend.set_timeout(_NEVER)
        except RuntimeError as error:
            raise RendezvousError(
                f"rank {rank} has no torch.distributed connection to rank {self.peer}: {error}", [self.peer]
            ) from error
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def ready(self) -> torch.cuda.Event | None:
        """Marks, on the worker's stream, the point where what it sends is computed."""
        if self._stream is None:
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def send(self, tensors: Sequence[Tensor], ready: torch.cuda.Event | None) -> None:
        """Send, and block until the memory of the tensors is free again."""
        if self._stream is not None:
            with torch.cuda.stream(self._stream):
                if ready is not None:
                    self._stream.wait_event(ready)
                self._wait([self._backend.send([tensor], _RECEIVER, 0) for tensor in tensors])
        else:
            self._wait([self._backend.send([tensor], _RECEIVER, 0) for tensor in tensors])

    def receive(self, specs: Sequence[TensorSpec]) -> tuple[Tensor, ...]:
        """Make tensors, receive into them, and block until all has come.

        On CUDA they belong to the side stream, or a receive would have to wait for all compute that is queued; whoever
        uses them on another stream tells the allocator by `record_stream`.
        """
        if self._stream is not None:
            with torch.cuda.stream(self._stream):
                return self._receive(specs)
        return self._receive(specs)

    def _receive(self, specs: Sequence[TensorSpec]) -> tuple[Tensor, ...]:
        tensors = tuple([empty_tensor(spec, self.device) for spec in specs])
        self._wait([self._backend.recv([_flat(tensor)], _SENDER, 0) for tensor in tensors if tensor.numel()])
        return tensors

    def _wait(self, works: Sequence[Any]) -> None:
        for work in works:
            work.wait()
        if self._stream is not None:
            # NCCL's wait() only orders streams. This thread blocks on the host, so that whoever gets the tensors next
            # needs no event, and the allocator no record of the stream.
            self._stream.synchronize()

    def close(self, fault: bool) -> None:
        """End the communicator. After a fault NCCL may only be aborted: destroying it would wait for the dead."""
        if fault and self._stream is not None:
            self._backend.abort()
        else:
            self._backend.shutdown()
        self._backend = None


def _flat(tensor: Tensor) -> Tensor:
    """The bytes of a tensor: no backend has to know its dtype."""
    return tensor.reshape(-1).view(torch.uint8)


def use_here(item: Item) -> Item:
    """On CUDA, tell the allocator that the tensors, which belong to a pair's stream, are used on this one too."""
    for tensor in item.tensors:
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
    return item


def _end(thread: threading.Thread, pair: Pair, timeout_s: float, fault: bool) -> bool:
    """Join a pair's thread and end its communicator. False where the thread hangs, which gloo gives no way to end."""
    thread.join(timeout_s)
    if thread.is_alive():
        if pair.device.type != "cuda":
            return False
        pair.close(fault=True)
        thread.join(timeout_s)
        return not thread.is_alive()
    pair.close(fault)
    return True


class PairSender:
    """A thread that sends tensors to one peer and holds them until they have left."""

    def __init__(self, pair: Pair, on_broken: OnBroken) -> None:
        self.pair = pair
        self.lock = threading.Lock()
        """Held while a header is sent and its tensors are queued: both go in one order."""
        self._on_broken = on_broken
        self._jobs: queue.SimpleQueue[tuple[list[Tensor], torch.cuda.Event | None] | None] = queue.SimpleQueue()
        self._broken = False
        self._thread = threading.Thread(target=self._run, name=f"paceline-send-{pair.peer}", daemon=True)
        self._thread.start()

    def put(self, tensors: Sequence[Tensor]) -> None:
        """Send tensors after all earlier ones. Empty ones are not sent."""
        flat = [_flat(tensor) for tensor in tensors if tensor.numel()]
        if flat:
            self._jobs.put((flat, self.pair.ready()))

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self.pair.send(*job)
            except RuntimeError as error:
                self._broken = True
                self._on_broken(self.pair.peer, f"sending tensors to it failed: {error}")
                return

    def close(self, timeout_s: float, fault: bool) -> bool:
        """Send what is queued, for at most `timeout_s`, and end. False where the thread still hangs in a send."""
        self._jobs.put(None)
        return _end(self._thread, self.pair, timeout_s, fault or self._broken)


class PairReceiver:
    """A thread that receives, for one peer, the tensors of headers that were checked, and hands the items on."""

    def __init__(self, pair: Pair, on_broken: OnBroken, on_error: Callable[[int, BaseException], None]) -> None:
        self.pair = pair
        self._on_broken = on_broken
        self._on_error = on_error
        self._jobs: queue.SimpleQueue[tuple[Data, Inlet] | None] = queue.SimpleQueue()
        self._broken = False
        self._thread = threading.Thread(target=self._run, name=f"paceline-recv-{pair.peer}", daemon=True)
        self._thread.start()

    def put(self, data: Data, inlet: Inlet) -> None:
        """Receive the tensors of a header after those of all earlier ones."""
        self._jobs.put((data, inlet))

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            data, inlet = job
            try:
                tensors = self.pair.receive(data.tensors)
            except RuntimeError as error:
                self._broken = True
                self._on_broken(self.pair.peer, f"receiving tensors from it failed: {error}")
                return
            try:
                inlet.arrived(item_from(data, tensors))
            except Exception as error:
                self._on_error(self.pair.peer, error)
                return

    def close(self, timeout_s: float, fault: bool) -> bool:
        """End after what is being received. False where the thread still hangs in a receive after `timeout_s`."""
        self._jobs.put(None)
        return _end(self._thread, self.pair, timeout_s, fault or self._broken)


class DistOutlet(Outlet):
    """Sends the header on the worker's thread and leaves the tensors to the pair's sender."""

    transport = Transport.dist

    def __init__(
        self, route: Route, max_items: int, max_bytes: int, max_message: int, mesh: Mesh, sender: PairSender
    ) -> None:
        super().__init__(route, max_items, max_bytes, max_message)
        self._mesh = mesh
        self._sender = sender

    def _transmit(self, item: Item, sequence: int) -> None:
        device = self._sender.pair.device
        tensors = tuple([tensor.to(device) for tensor in item.tensors])
        header, tensors_sent = encode_item(Item(item.key, tensors, item.meta, item.epoch), sequence, external=True)
        with self._sender.lock:
            self._mesh.send(self.route.target, [header])
            self._sender.put(tensors_sent)


class DistInlet(Inlet):
    """Checks the header on the mesh's thread, which never blocks, and leaves the tensors to the pair's receiver."""

    transport = Transport.dist

    def __init__(self, route: Route, deliver: Deliver, max_message: int, receiver: PairReceiver) -> None:
        super().__init__(route, deliver)
        self._max_message = max_message
        self._receiver = receiver

    def receive(self, data: Data, lengths: Sequence[int]) -> None:
        """Take in one header. Raises `WireError` or `ChannelError`."""
        check_data(data, lengths, self._max_message)
        self.expect(data.sequence)
        self._receiver.put(data, self)
