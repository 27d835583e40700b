"""Which ranks of a language workload keep their KV in memory tiers."""

from __future__ import annotations

from paceline.pipeline.placement import Placement
from paceline.pipeline.topology import Topology
from paceline.runtime.language.roles import Roles
from paceline.stages.lm.rank_tiers import RankTiers

__all__ = ["serial_tiers", "tiers_of"]


def tiers_of(topology: Topology, rank: int) -> RankTiers | None:
    """The tiers of a rank; None where its group has none."""
    spec = topology.tiers.get(Placement(topology).group_of_rank(rank))
    if spec is None:
        return None
    roles = Roles.of(topology)
    if rank == roles.drafter:
        return RankTiers(spec, topology.model.draft)
    return RankTiers(spec, topology.model.target, roles.verifiers.index(rank), len(roles.verifiers))


def serial_tiers(topology: Topology) -> RankTiers | None:
    """Those of the serial reference, which holds all layers with the budgets of one rank of the verifier's group."""
    verify = next(stage for stage in topology.stages.values() if stage.kind == "verify")
    spec = topology.tiers.get(verify.group)
    return None if spec is None else RankTiers(spec, topology.model.target)
