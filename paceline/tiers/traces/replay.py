"""Replaying a trace: profile, policy and planner of the live run, over attention that is known beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.tiers.block_stats import BlockStats, Ints
from paceline.tiers.planner import Move, Room, plan, spare_slots
from paceline.tiers.policies import Policy
from paceline.tiers.profile import Profile, of_use
from paceline.tiers.settings import Tier
from paceline.tiers.traces.trace import Step, Trace

__all__ = ["ReplayError", "ReplayScore", "ReplaySettings", "replay", "slots_of"]


class ReplayError(ValueError):
    """A trace can't be replayed with so little room."""


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """How the tiers are run; the defaults are those of a live run, apart from `refresh`."""

    hbm: float
    """Share of the most blocks alive at a time that fit into hbm."""
    dram: float = 1.0
    """Likewise dram; nvme takes the others."""
    bandwidth: int = 64
    """Blocks that a step may move between tiers."""
    hysteresis: float = 0.1
    decay: float = 0.7
    """Of `Profile`."""
    refresh: int = 1
    """Steps from one measurement of masses to the next: only those are shown to the policy."""
    spare: float = 0.0625
    """Share of hbm and dram that is kept free."""

    def __post_init__(self) -> None:
        if not (0 < self.hbm <= 1 and 0 <= self.dram <= 1):
            raise ReplayError(f"hbm is {self.hbm} and dram {self.dram}; they are shares of all blocks")
        if self.bandwidth < 1 or self.refresh < 1 or self.hysteresis < 0 or not 0 <= self.spare < 1:
            raise ReplayError(f"bandwidth and refresh have to be at least 1, hysteresis 0, spare in [0, 1): {self}")


class ReplayScore(NamedTuple):
    """How a policy did. Tuples are by tier: hbm, dram, nvme."""

    mass: tuple[float, float, float]
    """attention mass that fell on the blocks of each tier, summed over all calls"""
    hits: tuple[int, int, int]
    """lookups by where they found their block. A lookup is a block in a call in which it was of use (see `Profile`):
    exact attention reads every block in every call, and then any policy hits as often as any other"""
    moves: int
    """blocks moved between tiers"""
    forced: int
    """those of them that could not wait, because a new block had no room"""
    prefetches: int
    """blocks that came to hbm without having been missed there in the step before"""

    @property
    def lookups(self) -> int:
        return sum(self.hits)

    def mass_share(self, tier: Tier = Tier.hbm) -> float:
        """Share of the attention mass found in a tier, or in a nearer one."""
        return sum(self.mass[: tier + 1]) / max(sum(self.mass), 1e-300)

    def hit_share(self, tier: Tier = Tier.hbm) -> float:
        """Share of the lookups that found their block in a tier, or in a nearer one."""
        return sum(self.hits[: tier + 1]) / max(self.lookups, 1)


def slots_of(trace: Trace, settings: ReplaySettings) -> tuple[int, int, int]:
    """Slots of each tier: shares of the most blocks that live at a time, and nvme for all of them."""
    live = trace.live()
    return max(1, round(live * settings.hbm)), round(live * settings.dram), live


def replay(trace: Trace, policy: Policy, settings: ReplaySettings) -> ReplayScore:
    """Run a policy over a trace, and count what it found where.

    In each step the new blocks are made first, in hbm. Where it is full, the last by score are pushed out at once, new
    ones among them, as when a prompt is longer than hbm. Then attention looks its blocks up; then the policy is asked,
    and what the planner lists is moved before the next step.

    Raises `ReplayError` where hbm is too small even for the blocks being written.
    """
    return _Replay(trace, policy, settings).run()


class _Replay:
    """The tables of one replay."""

    def __init__(self, trace: Trace, policy: Policy, settings: ReplaySettings) -> None:
        self._trace, self._policy, self._settings = trace, policy, settings
        n = len(trace.blocks)
        self._profile = Profile(settings.decay, max(n, 1))
        self._tier = np.zeros(n, dtype=np.int8)
        self._live = np.zeros(n, dtype=np.bool_)
        self._lengths: dict[int, int] = {}
        self._sessions, self._session = np.unique(trace.blocks.session, return_inverse=True)
        hbm, dram, nvme = slots_of(trace, settings)
        streams = len({(call.session, call.layer) for step in trace.steps[:1] for call in step.calls})
        self._room = Room(
            hbm,
            dram,
            nvme,
            free_hbm=spare_slots(hbm, settings.spare, streams),
            free_dram=spare_slots(dram, settings.spare, streams),
        )
        self._mass = np.zeros(3)
        self._hits = np.zeros(3, dtype=np.int64)
        self._moves = self._forced = self._prefetches = 0

    def run(self) -> ReplayScore:
        for index, step in enumerate(self._trace.steps):
            self._arrive(step)
            missed = self._look_up(step)
            measured = index % self._settings.refresh == 0
            if measured:
                for call in step.calls:
                    self._profile.record(step.number, call.blocks, call.masses)
            self._live[step.dropped] = False
            if measured or self._pressed():
                self._plan(step.number, missed)
        hbm, dram, nvme = self._mass.tolist()
        hits: list[int] = self._hits.tolist()
        return ReplayScore((hbm, dram, nvme), (hits[0], hits[1], hits[2]), self._moves, self._forced, self._prefetches)

    def _arrive(self, step: Step) -> None:
        """Make the blocks that live from this step on."""
        for call in step.calls:
            self._lengths[call.session] = max(self._lengths.get(call.session, 0), call.length)
        named = np.concatenate([call.blocks for call in step.calls])
        new = np.unique(named[~self._live[named]])
        if not len(new):
            return
        self._profile.add(new, step.number)
        self._live[new] = True
        self._tier[new] = Tier.hbm
        held = np.bincount(self._tier[self._live], minlength=3)
        over = int(held[Tier.hbm]) - self._room.hbm
        if over > 0:
            self._push_out(over, self._room.dram - int(held[Tier.dram]), new, step.number)

    def _push_out(self, count: int, dram: int, new: Ints, step: int) -> None:
        """Take the last blocks of hbm down, new ones among them; `dram` of them fit there."""
        facts = self._facts()
        rows = np.flatnonzero((facts.tier == Tier.hbm) & ~facts.pinned)
        if len(rows) < count:
            raise ReplayError(
                f"step {step}: {self._room.hbm} slots of hbm can't even hold the blocks that are being written; "
                "give it a larger share"
            )
        scores = self._policy.keep(facts, step - 1)[rows]
        last = facts.block[rows[np.lexsort((facts.block[rows], facts.start[rows], scores))]][:count]
        self._tier[last] = Tier.nvme
        self._tier[last[::-1][:dram]] = Tier.dram
        self._moves += count
        self._forced += int(np.count_nonzero(~np.isin(last, new)))

    def _look_up(self, step: Step) -> Ints:
        """Count where attention found its blocks; returns those of use that were not in hbm."""
        missed = []
        for call in step.calls:
            tier = self._tier[call.blocks]
            self._mass += np.bincount(tier, weights=call.masses, minlength=3)
            used = of_use(call.masses)
            self._hits += np.bincount(tier[used], minlength=3)
            missed.append(call.blocks[used & (tier != Tier.hbm)])
            self._profile.touch(step.number, call.blocks)
        return np.unique(np.concatenate(missed))

    def _pressed(self) -> bool:
        held = np.bincount(self._tier[self._live], minlength=3)
        free = np.asarray(self._room.slots) - held
        return bool((free < np.asarray(self._room.reserve)).any())

    def _plan(self, step: int, missed: Ints) -> None:
        facts = self._facts()
        scores = self._policy.keep(facts, step)
        moves = plan(facts, scores, self._room, self._settings.bandwidth, self._settings.hysteresis)
        came = np.asarray([move.block for move in moves if move.target is Tier.hbm], dtype=np.int64)
        self._prefetches += int(np.count_nonzero(~np.isin(came, missed)))
        self._carry_out(moves)

    def _carry_out(self, moves: list[Move]) -> None:
        for move in moves:
            self._tier[move.block] = move.target
        self._moves += len(moves)

    def _facts(self) -> BlockStats:
        table = self._trace.blocks
        live = np.flatnonzero(self._live)
        known = self._profile.of(live)
        lengths = np.asarray([self._lengths.get(session, 0) for session in self._sessions.tolist()], dtype=np.int64)
        length = lengths[self._session[live]]
        start = table.start[live]
        pinned: NDArray[np.bool_] = start + self._trace.header.span >= length
        return BlockStats(
            block=live,
            session=table.session[live],
            layer=table.layer[live],
            start=start,
            place=table.place[live],
            length=length,
            tier=self._tier[live],
            mass=known.mass,
            total=known.total,
            seen=known.seen,
            used=known.used,
            read=known.read,
            pinned=pinned,
            sink=table.sink[live],
        )
