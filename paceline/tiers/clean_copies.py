"""Slots of the file that still hold the bytes of blocks that were promoted from it."""

from __future__ import annotations

from paceline.tiers.free_slots import Free, FreeRuns

__all__ = ["CleanCopies"]


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
