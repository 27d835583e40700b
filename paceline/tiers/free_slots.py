"""Which slots of a tier are free, which of them are given next, and which still hold the bytes of promoted blocks."""

from __future__ import annotations

from typing import Protocol

__all__ = ["CleanCopies", "Free", "FreeRuns", "FreeSlots"]


class Free(Protocol):
    """The free slots of a tier."""

    count: int
    """All slots, taken or not"""

    def __len__(self) -> int: ...

    def __contains__(self, slot: int) -> bool: ...

    def take(self, slots: int = 1) -> list[int]:
        """So many free slots. Raises `LookupError` where there are fewer."""

    def give(self, slot: int) -> None:
        """Free a slot."""

    def retire(self, slots: int = 1) -> None:
        """Note that taken slots will not come back."""

    @property
    def taken(self) -> int:
        """Slots that hold a block or are the target of a move."""


class FreeSlots(Free):
    """Free slots of an arena. The one that was freed last is given first: its memory is likely to be in a cache, and
    pages that were never used are taken late."""

    __slots__ = ("_bad", "_free", "count")

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))
        self._bad = 0

    def __len__(self) -> int:
        return len(self._free)

    def __contains__(self, slot: int) -> bool:
        return slot in self._free

    def take(self, slots: int = 1) -> list[int]:
        """So many free slots. Raises `LookupError` where there are fewer."""
        if slots > len(self._free):
            raise LookupError(f"{len(self._free)} of {self.count} slots are free, and {slots} are asked for")
        return [self._free.pop() for _ in range(slots)]

    def give(self, slot: int) -> None:
        """Free a slot."""
        self._free.append(slot)

    def retire(self, slots: int = 1) -> None:
        """Note that taken slots will not come back."""
        self._bad += slots

    def grow(self, slots: int) -> None:
        """Add slots behind the present ones."""
        self._free[:0] = range(self.count + slots - 1, self.count - 1, -1)
        self.count += slots

    @property
    def taken(self) -> int:
        """Slots that hold a block or are the target of a move."""
        return self.count - len(self._free) - self._bad


class FreeRuns(Free):
    """Free slots of a file. Those that are taken together are neighbours as far as there are runs of free ones, so that
    one call writes them, and one reads them back.

    Runs are looked for from where the last one was found on (next fit): what was written one after another lies one
    behind another.
    """

    __slots__ = ("_bad", "_free", "_left", "_next", "count")

    _LOOK = 1 << 16
    """Slots that are searched for a run before a shorter one will do"""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = bytearray(b"\1") * count
        self._left = count
        self._next = 0
        self._bad = 0

    def __len__(self) -> int:
        return self._left

    def __contains__(self, slot: int) -> bool:
        return bool(self._free[slot])

    def take(self, slots: int = 1) -> list[int]:
        """So many free slots, in runs. Raises `LookupError` where there are fewer."""
        if slots > self._left:
            raise LookupError(f"{self._left} of {self.count} slots are free, and {slots} are asked for")
        taken: list[int] = []
        size = slots
        while len(taken) < slots:
            size = min(size, slots - len(taken))
            first = self._run(size)
            if first < 0:
                size //= 2
                continue
            self._free[first : first + size] = bytes(size)
            self._next = first + size
            taken += range(first, first + size)
        self._left -= slots
        return taken

    def give(self, slot: int) -> None:
        """Free a slot."""
        self._free[slot] = 1
        self._left += 1

    def retire(self, slots: int = 1) -> None:
        """Note that taken slots will not come back."""
        self._bad += slots

    @property
    def taken(self) -> int:
        """Slots that hold a block or are the target of a move."""
        return self.count - self._left - self._bad

    def _run(self, size: int) -> int:
        """The first of so many free neighbours; -1 where none were found."""
        run = b"\1" * size
        if size == 1:
            first = self._free.find(run, self._next)
            return first if first >= 0 else self._free.find(run)
        first = self._free.find(run, self._next, self._next + self._LOOK)
        return first if first >= 0 else self._free.find(run, 0, self._LOOK)


class CleanCopies(Free):
    """The free slots of the nvme tier, some of which hold a clean copy: the bytes of a block that was promoted and has
    not been written since. Such a block is demoted to its copy without a write.

    A slot with a clean copy counts as free. Slots without one are taken first, then the copies that were kept longest
    are given up. So copies never take room from a block.
    """

    __slots__ = ("_runs", "_slots", "count")

    def __init__(self, count: int) -> None:
        self.count = count
        self._runs = FreeRuns(count)
        self._slots: dict[int, int] = {}
        """Slot of the clean copy by block, the one kept longest first."""

    def __len__(self) -> int:
        return len(self._runs) + len(self._slots)

    def __contains__(self, slot: int) -> bool:
        return slot in self._runs or slot in self._slots.values()

    def take(self, slots: int = 1) -> list[int]:
        """So many free slots, in runs. Raises `LookupError` where there are fewer."""
        if slots > len(self):
            raise LookupError(f"{len(self)} of {self.count} slots are free, and {slots} are asked for")
        while len(self._runs) < slots:
            self.forget(next(iter(self._slots)))
        return self._runs.take(slots)

    def give(self, slot: int) -> None:
        """Free a slot."""
        self._runs.give(slot)

    def retire(self, slots: int = 1) -> None:
        """Note that taken slots will not come back."""
        self._runs.retire(slots)

    @property
    def taken(self) -> int:
        """Slots that hold a block or are the target of a move."""
        return self._runs.taken - len(self._slots)

    def keep(self, block: int, slot: int) -> None:
        """Free the slot of a block that was promoted; it holds the clean copy of the block from now on."""
        self._slots[block] = slot

    def claim(self, block: int) -> int:
        """Take the slot that holds the clean copy of a block; -1 where there is no copy."""
        return self._slots.pop(block, -1)

    def forget(self, block: int) -> None:
        """Give up the clean copy of a block, if there is one: the block was written or released."""
        slot = self._slots.pop(block, None)
        if slot is not None:
            self._runs.give(slot)

    def copies(self) -> dict[int, int]:
        """Slot of the clean copy by block."""
        return dict(self._slots)
