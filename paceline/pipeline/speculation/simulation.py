"""What a simulation of speculation is given, and what it comes to. See `simulate.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from paceline.pipeline.speculation.controller import Controller
from paceline.pipeline.speculation.counters import Counters
from paceline.pipeline.speculation.hedge import Alternative
from paceline.pipeline.speculation.window import Coupling, Policy

__all__ = ["Simulation", "SpeculationReport", "TokenLaw"]

_WRONG = 1 << 20


@dataclass(frozen=True, slots=True)
class TokenLaw:
    """What is true of a text. Under a right prefix the drafter is right with chance `acceptance` at each position,
    independently; else the right token is among its F first alternatives with chance 1 - F**-`rank_power`.

    `forced_hit` replaces hedging by its outcome: with that chance a refill is there at once, for free.
    """

    acceptance: float
    rank_power: float = 1.0
    ranks: int = 16
    forced_hit: float | None = None
    seed: int = 0

    def token(self, position: int) -> int:
        """The target's token."""
        return position % 1021

    def drafted(self, session: int, position: int) -> int:
        """The drafter's token behind a right prefix."""
        right = _uniform(self.seed, session, position, 0) < self.acceptance
        return self.token(position) + (0 if right else _WRONG)

    def alternatives(self, session: int, position: int) -> list[Alternative]:
        """The drafter's alternatives at a position, with the shares that the law gives ranks."""
        rank = int((1.0 - _uniform(self.seed, session, position, 1)) ** (-1.0 / self.rank_power))
        right = self.token(position)
        found = right if self.drafted(session, position) != right else right + 2 * _WRONG
        shares = [k**-self.rank_power - (k + 1) ** -self.rank_power for k in range(1, self.ranks + 1)]
        return [(found if k == rank else right + (k + 2) * _WRONG, share) for k, share in enumerate(shares, 1)]

    def forced(self, session: int, position: int) -> bool:
        """Whether the refill behind a rejection at a position is taken to be ready."""
        return _uniform(self.seed, session, position, 2) < (self.forced_hit or 0.0)


@dataclass(frozen=True, slots=True)
class Simulation:
    """Settings and costs. `draft` gives the time of a drafter's step by the branches in it, `verify` that of a pass
    through all ranks by the tokens in it; `branches` bounds the branches that one session extends in a step."""

    law: TokenLaw
    draft: Callable[[int], float]
    verify: Callable[[int], float]
    window: int
    depth: int
    hedge: int = 0
    round_trip: float = 0.0
    verifiers: int = 1
    sessions: int = 1
    tokens: int = 10_000
    coupling: Coupling = Coupling.gumbel
    policy: Policy = Policy.hedge
    patience: float = float("inf")
    branches: int = 1
    controller: Controller | None = None
    """if given, picks window, depth and hedge from what is measured, every `interval` tokens of a session"""
    interval: int = 40


@dataclass(frozen=True, slots=True)
class SpeculationReport:
    """What a simulation came to. Times in its own unit; `speedup` over plain decoding of as many sessions, whose
    passes fill the ranks one at a time. `acceptance` is the share that the text's positions really had."""

    time: float
    tokens: int
    plain_time: float
    acceptance: float
    drafter_busy: float
    verifier_busy: float
    counters: Counters
    settled_speedup: float
    """of the second half of the tokens alone, when a controller has found its settings"""

    @property
    def speedup(self) -> float:
        """Speed over plain decoding."""
        return self.plain_time / self.time

    @property
    def drafter_waits(self) -> float:
        """Share of the time in which the drafter had nothing to do."""
        return 1.0 - self.drafter_busy / self.time

    @property
    def verifier_waits(self) -> float:
        """Share of the time in which the leader had nothing to do."""
        return 1.0 - self.verifier_busy / self.time


def _uniform(*parts: int) -> float:
    """A uniform in (0, 1) for a few small integers (splitmix64; Steele, Lea and Flood 2014)."""
    x = 0
    for part in parts:
        x = (x + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        x ^= x >> 31
    return ((x >> 11) + 0.5) * 2.0**-53
