"""The signature of all policies, and policies by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol

from paceline.registry import Registry
from paceline.tiers.block_stats import BlockStats, Floats

__all__ = ["ONLINE", "ORACLE", "POLICIES", "Policy", "make_policy", "policy"]


class Policy(Protocol):
    """Says which blocks should lie near the compute. A pure function of the facts: the planner decides what moves."""

    name: str

    def keep(self, facts: BlockStats, step: int) -> Floats:
        """A score for each row of `facts` after step `step`; blocks of higher scores belong into nearer tiers. Only the
        order counts, and the planner breaks ties."""
        ...


ORACLE = "oracle"
"""The one that needs the future, and so can only score recorded traces."""

ONLINE: tuple[str, ...] = ("lru", "window", "heavy-hitter", "attention-mass", "slab")
"""The built-in ones that can serve a live run."""

_MODULE = "paceline.tiers.policies."
POLICIES = Registry(
    "policy",
    "paceline.tier_policies",
    {
        "attention-mass": f"{_MODULE}built_in:AttentionMass",
        "heavy-hitter": f"{_MODULE}built_in:HeavyHitter",
        "lru": f"{_MODULE}built_in:Lru",
        "window": f"{_MODULE}built_in:Window",
        "slab": f"{_MODULE}slab:Slab",
        ORACLE: f"{_MODULE}built_in:Oracle",
    },
)
"""All policies; an entry is a class, whose constructor takes the options."""


def policy(name: str, **options: Any) -> Policy:
    """The policy of a name, with the options that its class documents.

    Raises `ValueError` for a name that is none, and for an option that the policy doesn't have.
    """
    return make_policy(name, options)


def make_policy(name: str, options: Mapping[str, Any], known: Mapping[str, Any] | None = None) -> Policy:
    """As `policy`. `known` are options that follow from the model, given to the policies that take them where the user
    names no other value."""
    takes = inspect.signature(POLICIES.load(name)).parameters
    made: Policy = POLICIES.make(
        name, {key: value for key, value in (known or {}).items() if key in takes} | dict(options)
    )
    return made
