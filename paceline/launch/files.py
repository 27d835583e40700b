"""Whether keys and policies that a topology names exist, whatever its workload."""

from __future__ import annotations

from paceline.launch.errors import ArgumentError
from paceline.pipeline.schema import choice
from paceline.pipeline.topology import Topology

__all__ = ["check_curve", "check_policies"]


def check_curve(topology: Topology) -> None:
    """Raise `ArgumentError` where the CURVE files that a topology names are missing, unfit or open to others."""
    curve = topology.network.curve
    if curve is None:
        return
    # Imported here: most topologies need no keys.
    from paceline.runtime.curve import load_curve
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
        online = [name for name in POLICIES.names() if name != ORACLE]
        if spec.policy not in online:
            raise ArgumentError(f"tiers.{group}.policy: is {spec.policy!r}; write {choice(online)}")
        try:
            make_policy(spec.policy, spec.options, {"columns": 1})
        except ValueError as error:
            raise ArgumentError(f"tiers.{group}.options: {error}; write options that the policy takes") from error
