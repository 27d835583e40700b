"""The KV of a decoder's sequences over memory tiers: who makes it, how much of it one pass may write, what it did."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from paceline.stages.lm.sequence_kv import KV
from paceline.stages.lm.tier_history import TierHistory
from paceline.stages.lm.tier_watch import TierWatch
from paceline.tiers.errors import StoreError
from paceline.tiers.manager import TierManager
from paceline.tiers.paged_kv import PagedKV
from paceline.tiers.parking import park, unpark
from paceline.tiers.prefix import PrefixIndex
from paceline.tiers.settings import Tier

__all__ = ["Piece", "TieredKV"]

Piece = tuple[int, range]
"""Which sequence of a forward, and which of its new positions, counted from its first new one."""


class TieredKV:
    """The tiers of one decoder."""

    def __init__(self, manager: TierManager) -> None:
        self.manager = manager
        self._watch = TierWatch(manager)
        self._prefixes = PrefixIndex(manager)
        self._shared = 0
        self.recomputed = 0
        """Positions that were computed again because a block could not be read back."""
        slots: int = manager.storage.free[Tier.hbm].count
        self._room = max(1, slots // manager.layout.layers)

    def new(self) -> KV:
        """An empty sequence."""
        return PagedKV(self.manager)

    def adopt(self, kv: KV, tokens: Sequence[int]) -> KV | None:
        """A sequence that has the longest beginning of these tokens that is known from others, all but the last at
        most; None where that is no more than `kv` has."""
        found = self._prefixes.adopt_tokens(tokens)
        if found.length <= kv.length:
            found.close()
            return None
        self._shared += found.length - kv.length
        return found

    def remember(self, kv: KV, tokens: Sequence[int]) -> None:
        """Let other sequences that begin with these tokens share the blocks of this one."""
        if isinstance(kv, PagedKV):
            self._prefixes.remember_tokens(kv, tokens)

    def forget(self) -> None:
        """Share nothing any more of what has been computed so far."""
        self._prefixes.clear()

    def park(self, kv: KV, length: int, path: Path, note: bytes, beat: Callable[[], None]) -> None:
        """Write the first `length` positions of a sequence to a file. Raises `TierError`."""
        fork = kv.fork(length)
        try:
            if isinstance(fork, PagedKV):
                park(fork, path, note, beat)
        finally:
            fork.close()

    def take_up(self, path: Path, length: int, note: bytes, beat: Callable[[], None]) -> KV:
        """The sequence of so many positions that was parked with this note. Raises `TierError`."""
        kv, found = unpark(self.manager, path, beat=beat)
        if (found, kv.length) != (note, length):
            kv.close()
            raise StoreError(f"{path} holds KV of another text")
        return kv

    def passed(self) -> None:
        """A pass has ended."""
        self.manager.step()
        self._watch.observe()

    def passes(self, lengths: Sequence[int], counts: Sequence[int]) -> Iterator[list[Piece]]:
        """Cut a forward of `counts` new positions of sequences that have `lengths` into passes that write no more
        blocks of a layer than hbm holds: a long prompt goes in chunks, and many sequences one after another."""
        size = self.manager.layout.block_size
        pieces: list[Piece] = []
        room = self._room
        for index, (length, count) in enumerate(zip(lengths, counts, strict=True)):
            done = 0
            while done < count:
                first = (length + done) // size
                if pieces and (room < 1 or (length + count - 1) // size - first >= room):
                    yield pieces
                    pieces, room = [], self._room
                stop = min(count, (first + room) * size - length)
                pieces.append((index, range(done, stop)))
                room -= (length + stop - 1) // size - first + 1
                done = stop
        yield pieces

    def statistics(self) -> dict[str, Any]:
        """What the JSON says of this rank's tiers."""
        return {
            **self.manager.statistics(),
            "shared_positions": self._shared,
            "recomputed_positions": self.recomputed,
        }

    def history(self) -> TierHistory:
        """Where blocks lay over time."""
        return self._watch.history()

    def close(self) -> None:
        """End the manager's threads and remove its file."""
        self.forget()
        self.manager.close_all()
