"""Where arrived items wait until the worker takes them, and what the worker sleeps on."""

from __future__ import annotations

import threading
from collections import Counter
from typing import NamedTuple

from paceline.runtime.errors import ChannelError
from paceline.stages.item import Item, Key

__all__ = ["Arrival", "Inbox"]


class Arrival(NamedTuple):
    """An item and the rank that it came from."""

    item: Item
    source: int


class Inbox:
    """Arrived items by key, for one worker thread and any number of threads that deliver.

    Every change that a worker could wait for (an item, a credit, a control message, a failure) raises `version`, and
    `wait` sleeps only while the version is the one that the worker saw before it looked. So no wake-up is ever lost:

        seen = inbox.version
        if not inbox.has(key):
            inbox.wait(seen)

    Items of an older epoch than their session's are refused; those of a newer one, which may overtake the news of a
    rollback, are kept apart until `open_epoch`. The size is bounded by the senders' credits, as nothing is taken out
    before its credit goes back.
    """

    def __init__(self) -> None:
        self.version = 0
        self.discarded: Counter[int] = Counter()
        """Discarded items by edge."""
        self._changed = threading.Condition(threading.Lock())
        self._items: dict[Key, Arrival] = {}
        self._early: dict[tuple[int, Key], Arrival] = {}
        self._epochs: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._items) + len(self._early)

    def put(self, item: Item, source: int) -> bool:
        """Deliver an item. False where its epoch is over: it was discarded, and its credit has to go back.

        Raises `ChannelError` where an item with this key and epoch is still waiting.
        """
        key = item.key
        with self._changed:
            epoch = self._epochs.get(key.session, 0)
            if item.epoch < epoch:
                self.discarded[key.edge] += 1
                return False
            early = item.epoch > epoch
            if (item.epoch, key) in self._early if early else key in self._items:
                raise ChannelError(f"{key} of epoch {item.epoch} arrived twice; the schedule sends it twice")
            if early:
                self._early[item.epoch, key] = Arrival(item, source)
            else:
                self._items[key] = Arrival(item, source)
            self.version += 1
            self._changed.notify_all()
        return True

    def has(self, key: Key) -> bool:
        """Whether the item has arrived, in the session's present epoch."""
        return key in self._items

    def arrived(self, edge: int, source: int) -> list[Key]:
        """The keys of what came by an edge from a rank, in the order of arrival."""
        if not self._items:
            return []
        with self._changed:
            return [key for key, (_, origin) in self._items.items() if key.edge == edge and origin == source]

    def take(self, key: Key) -> Arrival:
        """Remove and return an item. Raises `ChannelError` where it has not arrived."""
        with self._changed:
            arrival = self._items.pop(key, None)
        if arrival is None:
            raise ChannelError(f"{key} has not arrived; ask has() first")
        return arrival

    def open_epoch(self, session: int, epoch: int) -> list[Arrival]:
        """Begin a newer epoch of a session. Returns what it discarded, whose credits have to go back.

        Raises `ChannelError` where the epoch is not newer than the present one.
        """
        with self._changed:
            if epoch <= self._epochs.get(session, 0):
                raise ChannelError(
                    f"epoch {epoch} of session {session} can't open, as epoch {self._epochs.get(session, 0)} has; "
                    "epochs only grow"
                )
            self._epochs[session] = epoch
            purged = [key for key in self._items if key.session == session]
            discarded = [self._items.pop(key) for key in purged]
            for made, key in [early for early in self._early if early[1].session == session and early[0] <= epoch]:
                arrival = self._early.pop((made, key))
                if made == epoch:
                    self._items[key] = arrival
                else:
                    discarded.append(arrival)
            self.discarded.update(arrival.item.key.edge for arrival in discarded)
            self.version += 1
            self._changed.notify_all()
        return discarded

    def changed(self) -> None:
        """Wake the worker: a credit, a control message or a failure has come."""
        with self._changed:
            self.version += 1
            self._changed.notify_all()

    def wait(self, seen: int, timeout: float | None = None) -> int:
        """Sleep while the version is `seen`, for at most `timeout` seconds; returns the version then."""
        with self._changed:
            if self.version == seen:
                self._changed.wait_for(lambda: self.version != seen, timeout)
            return self.version
