"""Whether keys, policies and drafters that a topology names exist."""

from __future__ import annotations

from paceline.launch.errors import ArgumentError
from paceline.pipeline.schema import choice
from paceline.pipeline.speculation.settings import NO_DRAFTER
from paceline.pipeline.topology import LanguageTopology, StageKind, Topology

__all__ = ["check_curve", "check_drafter", "check_policies"]


def check_curve(topology: Topology) -> None:
    """Raise `ArgumentError` where the CURVE files that a topology names are missing, unfit or open to others."""
    curve = topology.network.curve
    if curve is None:
        return
    # Imported here: most topologies need no keys.
    from paceline.runtime.auth import load_curve
    from paceline.runtime.errors import RendezvousError

    try:
        load_curve(curve)
    except RendezvousError as error:
        raise ArgumentError(str(error)) from error


def check_policies(topology: Topology) -> None:
    """Raise `ArgumentError` where memory tiers name a policy that there is not, or options that it does not take."""
    if not topology.tiers:
        return
    # Imported here: it needs NumPy, and perhaps the packages of others.
    from paceline.tiers.policies import ORACLE, POLICIES, make_policy

    for group, spec in topology.tiers.items():
        if spec.policy == ORACLE or spec.policy not in POLICIES:
            online = [name for name in POLICIES if name != ORACLE]
            raise ArgumentError(f"tiers.{group}.policy: is {spec.policy!r}; write {choice(online)}")
        try:
            make_policy(spec.policy, spec.options, {"columns": 1})
        except ValueError as error:
            raise ArgumentError(f"tiers.{group}.options: {error}; write options that the policy takes") from error


def check_drafter(topology: LanguageTopology) -> None:
    """Raise `ArgumentError` where there is no drafter of the topology's name, it does not take the options, or it can't
    do what the topology asks of it."""
    # Imported here: the drafter may be from another package.
    from paceline.stages.lm.drafter import DRAFTERS, make_drafter

    spec = topology.speculation
    if spec.drafter != NO_DRAFTER and spec.drafter not in DRAFTERS:
        known = [*DRAFTERS, NO_DRAFTER]
        raise ArgumentError(f"speculation.drafter: is {spec.drafter!r}; write {choice(known)}")
    try:
        drafter = make_drafter(spec)
    except ValueError as error:
        raise ArgumentError(f"speculation.options: {error}; write options that the drafter takes") from error
    if drafter is not None and not drafter.can_hedge and isinstance(spec.hedge, int) and spec.hedge > 0:
        wrong = f"the drafter {spec.drafter} knows no second choice to hedge with"
        raise ArgumentError(f"speculation.hedge: {wrong}; write hedge: 0 or auto")
    group = topology.stages[topology.stage_of(StageKind.draft)].group
    if group in topology.tiers and (drafter is None or not drafter.has_model):
        wrong = f"a drafter of kind {spec.drafter} holds no KV"
        raise ArgumentError(f"tiers.{group}: {wrong}; remove them or write speculation.drafter: model")
