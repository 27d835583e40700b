"""The signature of all policies, and policies by name."""

from __future__ import annotations

from typing import Any, Protocol

from paceline.tiers.facts import Facts, Floats
from paceline.tiers.policies.attention_mass import AttentionMass
from paceline.tiers.policies.heavy_hitter import HeavyHitter
from paceline.tiers.policies.lru import Lru
from paceline.tiers.policies.oracle import Oracle
from paceline.tiers.policies.slab import Slab
from paceline.tiers.policies.window import Window

__all__ = ["ONLINE", "POLICIES", "Policy", "policy"]


class Policy(Protocol):
    """Says which blocks should lie near the compute. A pure function of the facts: the planner decides what moves."""

    name: str

    def keep(self, facts: Facts, step: int) -> Floats:
        """A score for each row of `facts` after step `step`; blocks of higher scores belong into nearer tiers. Only the
        order counts, and the planner breaks ties."""
        ...


_CLASSES = (Lru, Window, HeavyHitter, AttentionMass, Slab, Oracle)

POLICIES: tuple[str, ...] = tuple(kind.name for kind in _CLASSES)
"""The names of all policies."""

ONLINE: tuple[str, ...] = tuple(kind.name for kind in _CLASSES if kind is not Oracle)
"""Those that need no future, and so can serve a live run."""


def policy(name: str, **options: Any) -> Policy:
    """The policy of a name, with the options that its class documents.

    Raises `ValueError` for a name that is none, and for an option that the policy doesn't have.
    """
    for kind in _CLASSES:
        if kind.name == name:
            try:
                made: Policy = kind(**options)
            except TypeError as error:
                raise ValueError(f"policy {name}: {error}") from error
            return made
    raise ValueError(f"there is no policy {name!r}; there are {', '.join(POLICIES)}")
