"""A worker's post: messages to and from the ranks that it shares an edge with, batched into items."""

from __future__ import annotations

from collections import deque

from paceline.runtime.endpoint import Endpoint
from paceline.runtime.errors import ChannelError
from paceline.runtime.language.messages import Message, message_bytes, pack, unpack
from paceline.stages.item import Item, Key

__all__ = ["Mailbox"]

_MAX_MESSAGES = 64
"""Messages of one item, so that one never grows with the number of sessions."""


class Mailbox:
    """Numbers the items of each route. What there is no credit for waits here, in order.

    A route joins two ranks by one edge; where an edge joins several ranks (the runs of a verifier), each pair counts
    for itself, so keys carry the sender's rank as their session.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._waiting: dict[tuple[int, int], deque[Message]] = {}
        self._sent: dict[tuple[int, int], int] = {}
        self._expected: dict[tuple[int, int], int] = {}

    def listen(self, edge: int, source: int) -> None:
        """Take what comes by an edge from a rank."""
        self._expected[edge, source] = 0

    def put(self, edge: int, target: int, message: Message) -> None:
        """Send a message with the next `send`. What goes to a rank that is lost is dropped."""
        self._waiting.setdefault((edge, target), deque()).append(message)

    def drop(self, target: int) -> None:
        """Forget what waits for a rank."""
        for (_, to), messages in self._waiting.items():
            if to == target:
                messages.clear()

    def backlog(self, edge: int, target: int) -> int:
        """How many messages wait for a rank's credit."""
        return len(self._waiting.get((edge, target), ()))

    def send(self) -> None:
        """Send what was put, as far as there is credit."""
        for (edge, target), messages in self._waiting.items():
            if target in self._endpoint.lost:
                messages.clear()
            while messages:
                batch = self._batch(messages, self._endpoint.edge_bytes(edge))
                number = self._sent.get((edge, target), 0)
                item = Item(Key(edge, self._endpoint.rank, number), pack(batch))
                if not self._endpoint.can_send(edge, target, self._endpoint.rank, 1, item.nbytes):
                    break
                self._endpoint.send(target, item)
                self._sent[edge, target] = number + 1
                for _ in batch:
                    messages.popleft()

    def _batch(self, messages: deque[Message], most: int) -> list[Message]:
        """The first messages that together hold at most half of the edge's bytes, but at least one."""
        batch: list[Message] = []
        held = 0
        for message in messages:
            held += message_bytes(message)
            if batch and (2 * held > most or len(batch) == _MAX_MESSAGES):
                break
            batch.append(message)
        return batch

    @property
    def pending(self) -> bool:
        """Whether something waits for credit."""
        return any(self._waiting.values())

    def take(self) -> list[tuple[int, int, Message]]:
        """What has come, as (edge, source rank, message), in order for each route."""
        found: list[tuple[int, int, Message]] = []
        for (edge, source), number in self._expected.items():
            while self._endpoint.has(key := Key(edge, source, number)):
                item = self._endpoint.take(key)
                if item.key != key:
                    raise ChannelError(f"{item.key} came in place of {key}")
                found += [(edge, source, message) for message in unpack(item.tensors)]
                number += 1
            self._expected[edge, source] = number
        return found
