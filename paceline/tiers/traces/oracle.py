"""What was possible on a trace: an oracle that moves like any policy, a ceiling without that limit, Belady's rule."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.tiers.block_stats import Floats, Ints
from paceline.tiers.policies import policy
from paceline.tiers.profile import of_use
from paceline.tiers.settings import Tier
from paceline.tiers.traces.replay import ReplayScore, ReplaySettings, replay, slots_of
from paceline.tiers.traces.trace import Trace

__all__ = ["Belady", "Future", "belady", "ceiling", "oracle_score"]

_LOOKAHEADS = (1, 4, 16, 64)
"""Steps; with bandwidth to spare the shortest is best, else it pays to come early and to stay."""


class Future:
    """What the oracle knows: masses to come. `Future(trace, lookahead)` is what the policy `oracle` takes."""

    def __init__(self, trace: Trace, lookahead: int) -> None:
        """Of the coming `lookahead` steps the nearer count more: the next one 1, the last one 1 / `lookahead`."""
        self._steps = trace.steps
        self._numbers = [step.number for step in trace.steps]
        self._lookahead = lookahead
        self._first = 0
        self._sum = np.zeros(len(trace.blocks))
        """Of the masses of steps [first, first + lookahead)."""
        self._need = np.zeros(len(trace.blocks))
        self._rewind(0)

    def __call__(self, blocks: Ints, step: int) -> Floats:
        """Weighted sum of the masses of some blocks in the steps after `step`."""
        first = bisect_right(self._numbers, step)
        if first == self._first + 1:
            self._advance()
        elif first != self._first:
            self._rewind(first)
        return self._need[blocks]

    def _rewind(self, first: int) -> None:
        self._first = first
        self._sum[:], self._need[:] = 0, 0
        for ahead in range(self._lookahead):
            self._add(self._sum, first + ahead, 1.0)
            self._add(self._need, first + ahead, 1 - ahead / self._lookahead)

    def _advance(self) -> None:
        """One step on: the next step's masses are past, and those of all others count 1 / `lookahead` more."""
        self._add(self._need, self._first, -1.0)
        self._add(self._sum, self._first, -1.0)
        self._add(self._sum, self._first + self._lookahead, 1.0)
        self._first += 1
        self._need += self._sum / self._lookahead

    def _add(self, to: Floats, index: int, weight: float) -> None:
        if index < len(self._steps):
            for call in self._steps[index].calls:
                to[call.blocks] += weight * call.masses


def oracle_score(trace: Trace, settings: ReplaySettings) -> ReplayScore:
    """The oracle under the same planner, room and bandwidth as any policy: the best in hbm of several lookaheads.

    No exact optimum (that is `optimum.py`, for small traces), but what a policy of this signature reaches with the
    future in hand. It plans after every step, whatever `refresh` is, and without hysteresis.
    """
    free = ReplaySettings(
        settings.hbm, settings.dram, settings.bandwidth, hysteresis=0.0, decay=settings.decay, spare=settings.spare
    )
    scores = [replay(trace, policy("oracle", future=Future(trace, ahead)), free) for ahead in _LOOKAHEADS]
    return max(scores, key=ReplayScore.mass_share)


def ceiling(trace: Trace, settings: ReplaySettings) -> tuple[float, float]:
    """Shares of the mass that hbm, and hbm and dram together, hold at best if every step had its own best blocks in
    them, however many moves that takes. No policy gets past it."""
    slots = slots_of(trace, settings)
    best, total = np.zeros(2), 0.0
    for step in trace.steps:
        mass = np.zeros(len(trace.blocks))
        for call in step.calls:
            mass[call.blocks] += call.masses
        falling = np.sort(mass)[::-1]
        total += float(mass.sum())
        best += [falling[: slots[Tier.hbm]].sum(), falling[: slots[Tier.hbm] + slots[Tier.dram]].sum()]
    hbm, dram = (best / max(total, 1e-300)).tolist()
    return hbm, dram


class Belady(NamedTuple):
    """The least that lookups cost in one nearest tier."""

    lookups: int
    misses: int


def belady(trace: Trace, slots: int) -> Belady:
    """The fewest misses of a tier with so many slots, over the lookups that a replay counts (blocks of use).

    Blocks in the step in which they are made are found, wherever they were laid down.

    Belady's rule (IBM Systems Journal 1966): keep what is needed soonest. Here a missed block may be kept or not, as it
    was brought to the compute anyway; new blocks begin in the tier, and blocks still being written stay in it. The rule
    is optimal, because all blocks have one size and one cost and lie in one set: what is kept from one use to the next
    is an interval, and dropping the one that ends last is the greedy colouring of intervals (Faigle and Nawijn,
    Discrete Applied Mathematics 1995). It bounds `misses + prefetches` of a policy from below, not the misses alone,
    as a block that comes before its use costs a move in place of a miss.
    """
    never = len(trace.steps) + 1
    never = len(trace.steps)
    uses = _uses(trace)
    following: list[Ints] = [use.touched for use in uses]
    soonest = np.full(len(trace.blocks), never, dtype=np.int64)
    for index in range(never - 1, -1, -1):
        following[index] = soonest[uses[index].touched]
        soonest[uses[index].used] = index
    next_use = np.full(len(trace.blocks), never, dtype=np.int64)
    kept = np.zeros(0, dtype=np.int64)
    misses = 0
    for index, use in enumerate(uses):
        here = np.union1d(kept, use.new)
        misses += len(np.setdiff1d(use.used, here))
        next_use[use.touched] = following[index]
        fixed = np.intersect1d(use.pinned, here)
        wanted = np.setdiff1d(np.union1d(here, use.used), np.union1d(fixed, use.dropped))
        wanted = wanted[next_use[wanted] < never]
        order = np.argsort(next_use[wanted], kind="stable")
        kept = np.union1d(wanted[order[: max(0, slots - len(fixed))]], fixed)
    return Belady(sum(use.lookups for use in uses), misses)


@dataclass(frozen=True, slots=True)
class _Use:
    """A step as Belady's rule sees it."""

    used: Ints
    new: Ints
    pinned: Ints
    dropped: Ints
    lookups: int

    @property
    def touched(self) -> Ints:
        return np.union1d(self.used, self.new)


def _uses(trace: Trace) -> Sequence[_Use]:
    born: NDArray[np.bool_] = np.zeros(len(trace.blocks), dtype=np.bool_)
    uses = []
    for step in trace.steps:
        used, pinned, lookups = [], [], 0
        for call in step.calls:
            mine = call.blocks[of_use(call.masses)]
            used.append(mine)
            lookups += len(mine)
            pinned.append(call.blocks[trace.blocks.start[call.blocks] + trace.header.span >= call.length])
        named = np.unique(np.concatenate([call.blocks for call in step.calls]))
        new = named[~born[named]]
        born[new] = True
        uses.append(
            _Use(np.unique(np.concatenate(used)), new, np.unique(np.concatenate(pinned)), step.dropped, lookups)
        )
    return uses
