"""Policies by recency, position, mass or foreknowledge alone: lru, window, heavy-hitter, attention-mass and oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from paceline.tiers.block_stats import BlockStats, Floats, Ints

__all__ = ["AttentionMass", "HeavyHitter", "Lru", "Oracle", "Window"]


@dataclass(frozen=True, slots=True)
class Lru:
    """Ranks blocks by the last step at which they were of use.

    Exact attention reads every block at every step, which would make all of them equal. A block counts as used when it
    was written, or when more than the mean mass of its call fell on it; see `Profile`.
    """

    name = "lru"

    def keep(self, facts: BlockStats, step: int) -> Floats:
        """Scores `[n]`; the higher, the nearer to the compute."""
        return facts.used.astype(np.float64)


@dataclass(frozen=True, slots=True)
class Window:
    """Ranks sinks first, then blocks by their distance to the end of their session (StreamingLLM, Xiao et al., ICLR
    2024)."""

    name = "window"

    def keep(self, facts: BlockStats, step: int) -> Floats:
        """Scores `[n]`; the higher, the nearer to the compute."""
        nearness = (facts.start - facts.length).astype(np.float64)
        return np.where(facts.sink, np.inf, nearness)


@dataclass(frozen=True, slots=True)
class HeavyHitter:
    """Ranks the latest `recent` tokens first, then blocks by the sum of all mass that ever fell on them (H2O, Zhang et
    al., NeurIPS 2023). Nothing is forgotten, so what once mattered keeps its place."""

    name = "heavy-hitter"

    recent: int = 256
    """Tokens of every session that are kept because they are the latest."""

    def keep(self, facts: BlockStats, step: int) -> Floats:
        """Scores `[n]`; the higher, the nearer to the compute."""
        # Among the latest the younger goes first; a sum of masses of one block stays far below the shift.
        distance = (facts.length - facts.start).astype(np.float64)
        return np.where(distance <= self.recent, 1e12 - distance, facts.total)


@dataclass(frozen=True, slots=True)
class AttentionMass:
    """Ranks blocks by the exponential average of their attention mass.

    What was never measured is taken for local: it gets a mass that falls with its distance to the end of its session.
    """

    name = "attention-mass"

    near: float = 16.0
    """Distance in positions at which the mass of an unmeasured block is taken to be a half."""

    def keep(self, facts: BlockStats, step: int) -> Floats:
        """Scores `[n]`; the higher, the nearer to the compute."""
        distance = np.maximum(facts.length - facts.start, 0)
        unknown = np.where(facts.sink, 1.0, 1.0 / (1.0 + distance / self.near))
        return np.where(facts.seen > 0, facts.mass, unknown)


@dataclass(frozen=True, slots=True)
class Oracle:
    """Ranks blocks by what `future(blocks, step)` says of them: something that grows with the need for a block after
    `step`, such as the discounted sum of its coming masses, or how soon it is used next (Belady's rule)."""

    name = "oracle"

    future: Callable[[Ints, int], Floats]

    def keep(self, facts: BlockStats, step: int) -> Floats:
        """Scores `[n]`; the higher, the nearer to the compute."""
        return np.asarray(self.future(facts.block, step), dtype=np.float64)
