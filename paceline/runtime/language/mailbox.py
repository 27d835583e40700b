"""Messages to and from the ranks that share an edge with this one, batched into items."""

from __future__ import annotations

from collections import deque

from paceline.runtime.endpoint import Endpoint
from paceline.runtime.errors import ChannelError
from paceline.runtime.language.messages import Message, Record, pack, record_of, session_of, unpack
from paceline.stages.item import Item, Key

__all__ = ["Mailbox"]

_MAX_MESSAGES = 64
"""Messages of one item, so that one never grows with what has to wait."""
_MAX_WAITING = 64
"""Messages of a session that may wait for credit before nothing more is produced for it: one item takes as many."""
_ALL_SESSIONS = 2**31 - 1
"""Stands in keys for a session where a message is about all of them. No session has this number."""


class Mailbox:
    """Numbers the items of each route. What there is no credit for waits here, in order.

    Each session has credits of its own, so one whose messages are not taken does not keep another from sending. Whoever
    produces a message (the scheduler a window to forward, the drafter a window that it drafted) asks `has_room` before.
    A rank in between passes on what it receives and never stops receiving: what it holds of a session is at most the
    windows in flight, and the messages of its start and end. Verdicts for a drafter are bounded by giving it up.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._waiting: dict[tuple[int, int, int], deque[Record]] = {}
        """By edge, target and session; only what is not empty"""
        # A route keeps the order of its items, so one count is enough, however many sessions there are.
        self._sent: dict[tuple[int, int], int] = {}
        """By edge and target: items that were sent"""
        self._listening: dict[tuple[int, int], int] = {}
        """By edge and source: items that were taken"""

    def listen(self, edge: int, source: int) -> None:
        """Take what comes by an edge from a rank."""
        self._listening[edge, source] = 0

    def put(self, edge: int, target: int, message: Message) -> None:
        """Send a message with the next `send`. What goes to a rank that is lost is dropped."""
        session = session_of(message)
        key = edge, target, _ALL_SESSIONS if session is None else session
        self._waiting.setdefault(key, deque()).append(record_of(message))

    def has_room(self, edge: int, target: int, session: int) -> bool:
        """Whether a message of a session may be produced: few enough wait for credit."""
        return len(self._waiting.get((edge, target, session), ())) < _MAX_WAITING

    def drop(self, target: int) -> None:
        """Forget what waits for a rank."""
        for key in [key for key in self._waiting if key[1] == target]:
            del self._waiting[key]

    def backlog(self, edge: int, target: int) -> int:
        """How many messages wait for a rank's credit, of all sessions."""
        return sum(len(records) for key, records in self._waiting.items() if key[:2] == (edge, target))

    def send(self) -> None:
        """Send what was put, as far as there is credit."""
        for key in list(self._waiting):
            edge, target, session = key
            records = self._waiting[key]
            if target in self._endpoint.lost:
                records.clear()
            while records:
                batch = self._batch(records, self._endpoint.edge_bytes(edge))
                nbytes = sum(record.nbytes for record in batch)
                if not self._endpoint.can_send(edge, target, session, 1, nbytes):
                    break
                number = self._sent.get((edge, target), 0)
                self._endpoint.send(target, Item(Key(edge, session, number), pack(batch)))
                self._sent[edge, target] = number + 1
                for _ in batch:
                    records.popleft()
            if not records:
                del self._waiting[key]

    def _batch(self, records: deque[Record], most: int) -> list[Record]:
        """The first messages that together hold at most half of the edge's bytes, but at least one."""
        batch: list[Record] = []
        held = 0
        for record in records:
            held += record.nbytes
            if batch and (2 * held > most or len(batch) == _MAX_MESSAGES):
                break
            batch.append(record)
        return batch

    @property
    def pending(self) -> bool:
        """Whether something waits for credit."""
        return bool(self._waiting)

    def take(self) -> list[tuple[int, int, Message]]:
        """What has come, as (edge, source rank, message), in order for each route and session."""
        found: list[tuple[int, int, Message]] = []
        for edge, source in self._listening:
            for key in self._endpoint.arrived(edge, source):
                expected = Key(edge, key.session, self._listening[edge, source])
                if key != expected:
                    raise ChannelError(f"{key} came in place of {expected}; restart the run")
                self._listening[edge, source] += 1
                found += [(edge, source, message) for message in unpack(self._endpoint.take(key).tensors)]
        return found
