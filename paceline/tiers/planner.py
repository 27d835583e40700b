"""Which blocks move: from scores, room and bandwidth to a list of moves. Pure.

The planner never drops a block, never moves a pinned one, and never lists a move that doesn't fit when the list is
carried out in its order: demotions first, then promotions into what they left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from paceline.tiers.block_stats import BlockStats, Floats
from paceline.tiers.settings import Tier

__all__ = ["Move", "Room", "plan", "spare_slots"]


class Move(NamedTuple):
    """One block goes from one tier to another."""

    block: int
    source: Tier
    target: Tier


@dataclass(frozen=True, slots=True)
class Room:
    """Slots of each tier, taken or not, and how many of them are to stay free so that nobody has to wait for one.

    Raises `ValueError` for negative numbers.
    """

    hbm: int
    dram: int
    nvme: int = 0
    free_hbm: int = 0
    free_dram: int = 0
    free_nvme: int = 0

    def __post_init__(self) -> None:
        if min(*self.slots, *self.reserve) < 0:
            raise ValueError(f"slots and free slots can't be negative: {self}")

    @property
    def slots(self) -> tuple[int, int, int]:
        """By tier."""
        return self.hbm, self.dram, self.nvme

    @property
    def reserve(self) -> tuple[int, int, int]:
        """By tier: slots to keep free."""
        return self.free_hbm, self.free_dram, self.free_nvme


def spare_slots(slots: int, share: float, streams: int) -> int:
    """Slots of a tier to keep free: a share, and enough for a new block of each stream (a layer of a session) at once,
    but never more than a quarter. A share of 0 keeps none."""
    return min(slots // 4, max(int(slots * share), streams)) if share else 0


def plan(facts: BlockStats, scores: Floats, room: Room, bandwidth: int, hysteresis: float = 0.1) -> list[Move]:
    """The moves that bring the best blocks nearest, at most `bandwidth` of them (blocks per step).

    Blocks are ranked by score; of equal ones the nearer first, then the later in its session, then the smaller id.

    1. Pressure: while a tier has fewer free slots than it should, its last block by rank is demoted.
    2. Room that is free, beyond what should stay so, is filled with the best blocks from below.
    3. Exchanges: a block from below replaces the last of a tier where it ranks before it and within the first
       1 - `hysteresis` of the tier's places, so that blocks at the border don't go to and fro. Ranks and not scores are
       compared, so one hysteresis suits every policy.

    A demotion from hbm goes to dram; where dram is full its last block goes to nvme first, or the demoted one does, if
    it ranks lower. Raises `ValueError` where a tier holds more blocks than it has slots, or scores don't fit the facts.
    """
    if len(scores) != len(facts):
        raise ValueError(f"{len(scores)} scores for {len(facts)} blocks; a policy gives one for each")
    if np.isnan(scores).any():
        raise ValueError("a score is not a number; a policy has to rank every block")
    held = np.bincount(facts.tier, minlength=3)
    for tier in Tier:
        if held[tier] > room.slots[tier]:
            raise ValueError(f"{tier.name} holds {held[tier]} blocks, but has {room.slots[tier]} slots")
    if bandwidth < 1 or not len(facts):
        return []
    return _Plan(facts, scores, room, bandwidth, hysteresis).moves()


class _Plan:
    """The state of one call: what is free as the list stands, and who is next on either side of each border."""

    def __init__(self, facts: BlockStats, scores: Floats, room: Room, bandwidth: int, hysteresis: float) -> None:
        self._room, self._left = room, bandwidth
        order = np.lexsort((facts.block, -facts.start, facts.tier, -scores))
        order = order[~facts.pinned[order]]
        self._blocks = facts.block[order]
        self._tiers = facts.tier[order]
        held = np.bincount(facts.tier, minlength=3)
        pinned = np.bincount(facts.tier[facts.pinned], minlength=3)
        places = [max(0, int(room.slots[tier] - room.reserve[tier] - pinned[tier])) for tier in Tier]
        self._sure = [
            places[Tier.hbm] - round(places[Tier.hbm] * hysteresis),
            places[Tier.hbm] + places[Tier.dram] - round(places[Tier.dram] * hysteresis),
        ]
        """By tier: below this rank a block replaces another."""
        self._free = [int(room.slots[tier] - held[tier]) for tier in Tier]
        """By tier, after the moves listed so far; demotions come first, so what promotions leave does not count."""
        self._credit = 0
        """Slots of dram that promotions leave."""
        self._stays = [np.flatnonzero(self._tiers == tier).tolist() for tier in Tier]
        """By tier: ranks in it, the last at the end. Those in `_moved` are skipped."""
        self._moved: set[int] = set()
        self._demotions: list[Move] = []
        self._promotions: list[Move] = []

    def moves(self) -> list[Move]:
        self._relieve()
        self._raise_to_hbm()
        self._raise_to_dram()
        # First what makes room in dram for what comes from hbm: moves of one kind together are one job.
        return sorted(self._demotions, key=lambda move: -move.source) + self._promotions

    def _relieve(self) -> None:
        """Pressure: demote until the slots that should be free are."""
        while self._left and self._free[Tier.hbm] < self._room.free_hbm:
            rank = self._last(Tier.hbm)
            if rank < 0 or not self._lower(rank, self._left, alone=True):
                break
        while self._left and self._free[Tier.dram] < self._room.free_dram and self._nvme_fits():
            rank = self._last(Tier.dram)
            if rank < 0:
                break
            self._move(rank, Tier.nvme, self._demotions)

    def _raise_to_hbm(self) -> None:
        spare = self._free[Tier.hbm] - self._room.free_hbm
        below = np.flatnonzero(self._tiers != Tier.hbm)
        for rank in below[: self._left + len(self._moved)].tolist():
            if rank in self._moved:
                continue
            from_dram = self._tiers[rank] == Tier.dram
            if self._left and spare > 0:
                spare -= 1
            else:
                if self._left < 2 or rank >= self._sure[Tier.hbm]:
                    break
                self._moved.add(rank)  # it is about to go up, and so is none of those that make room
                self._credit += from_dram
                last = self._last(Tier.hbm)
                made_room = last > rank and self._lower(last, self._left - 1, alone=False)
                self._credit -= from_dram
                if not made_room:
                    self._moved.discard(rank)
                    break
            self._credit += from_dram
            self._move(rank, Tier.hbm, self._promotions)

    def _raise_to_dram(self) -> None:
        self._free[Tier.dram] += self._credit
        spare = self._free[Tier.dram] - self._room.free_dram
        below = np.flatnonzero(self._tiers == Tier.nvme)
        for rank in below[: self._left + len(self._moved)].tolist():
            if rank in self._moved:
                continue
            if self._left and spare > 0:
                spare -= 1
            else:
                last = self._last(Tier.dram)
                if self._left < 2 or rank >= self._sure[Tier.dram] or last < rank or not self._nvme_fits():
                    break
                self._move(last, Tier.nvme, self._demotions)
            self._move(rank, Tier.dram, self._promotions)

    def _lower(self, rank: int, left: int, alone: bool) -> bool:
        """Take a block of hbm down, in at most `left` moves. `alone`: nobody waits for the slot, so half of the way is
        worth going. Returns whether it went."""
        if self._free[Tier.dram] + self._credit <= self._room.free_dram or not self._free[Tier.dram]:
            last = self._last(Tier.dram)
            if self._nvme_fits():
                if last < rank:
                    self._move(rank, Tier.nvme, self._demotions)
                    return True
                if left > 1 or alone:
                    self._move(last, Tier.nvme, self._demotions)
                    left -= 1
            if not left or not self._free[Tier.dram]:
                return False
        self._move(rank, Tier.dram, self._demotions)
        return True

    def _last(self, tier: Tier) -> int:
        """The last rank that is in a tier and stays there so far; -1 where there is none."""
        stays = self._stays[tier]
        while stays and stays[-1] in self._moved:
            stays.pop()
        return stays[-1] if stays else -1

    def _nvme_fits(self) -> bool:
        return self._free[Tier.nvme] > self._room.free_nvme

    def _move(self, rank: int, target: Tier, among: list[Move]) -> None:
        source = Tier(int(self._tiers[rank]))
        if among is self._demotions:
            self._free[source] += 1
        self._free[target] -= 1
        self._left -= 1
        self._moved.add(rank)
        among.append(Move(int(self._blocks[rank]), source, target))
