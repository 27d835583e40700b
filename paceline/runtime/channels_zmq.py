"""The zmq channel: an item is one message, its tensors the frames behind the header."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.pipeline.topology import Transport
from paceline.runtime.channels import Deliver, Inlet, Outlet, Route
from paceline.runtime.mesh import Mesh
from paceline.runtime.wire import Buffer, Data, check_data, encode_item, item_from, read_tensors, tensor_bytes
from paceline.stages.item import Item

__all__ = ["ZmqInlet", "ZmqOutlet"]


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
