"""A policy's score on a trace, beside what was possible."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paceline.tiers.policies import policy
from paceline.tiers.settings import Tier
from paceline.tiers.traces.oracle import belady, ceiling, oracle_score
from paceline.tiers.traces.replay import ReplayScore, ReplaySettings, replay, slots_of
from paceline.tiers.traces.trace import Trace

__all__ = ["regret", "score_policy"]


def score_policy(
    trace: Trace, name: str, settings: ReplaySettings, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Replay a trace under a policy and judge it; what `paceline trace replay --json` prints. docs/traces.md has the
    fields.

    Raises `ValueError` for a policy or an option that there is not, `ReplayError` where hbm is too small.
    """
    oracle = oracle_score(trace, settings)
    score = oracle if name == "oracle" else replay(trace, policy(name, **(options or {})), settings)
    slots = slots_of(trace, settings)
    least = belady(trace, slots[Tier.hbm])
    best = ceiling(trace, settings)
    cost = score.lookups - score.hits[Tier.hbm] + score.prefetches
    tiers = (Tier.hbm, Tier.dram)
    mass = sum(score.mass) or 1.0
    return {
        "trace": trace.header.name,
        "policy": name,
        "hbm": settings.hbm,
        "slots": {tier.name: slots[tier] for tier in Tier},
        "steps": len(trace.steps),
        "mass_share_hbm": score.mass_share(),
        "mass_share": {tier.name: score.mass[tier] / mass for tier in Tier},
        "hit_share": score.hit_share(),
        "hits": {tier.name: score.hits[tier] for tier in Tier},
        "lookups": score.lookups,
        "moves": score.moves,
        "forced_moves": score.forced,
        "moved_bytes": score.moves * trace.header.block_bytes,
        "regret": regret(score, oracle, Tier.hbm),
        "regret_by_tier": {tier.name: regret(score, oracle, tier) for tier in tiers},
        "oracle": {"mass_share_hbm": oracle.mass_share(), "hit_share": oracle.hit_share()},
        "ceiling": {tier.name: best[tier] for tier in tiers},
        "belady": {"misses": least.misses, "cost": cost, "regret": cost / least.misses - 1 if least.misses else None},
    }


def regret(score: ReplayScore, oracle: ReplayScore, tier: Tier) -> float:
    """Which share of the mass that the oracle found in a tier or nearer a policy did not; negative where it found more,
    as the oracle is no exact optimum."""
    best = oracle.mass_share(tier)
    return 1 - score.mass_share(tier) / best if best else 0.0
