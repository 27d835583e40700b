"""Which ranks of a language workload keep their KV in memory tiers."""

from __future__ import annotations

from paceline.pipeline.placement import Placement
from paceline.pipeline.topology import Topology
from paceline.runtime.language.models import Models
from paceline.runtime.language.roles import Roles
from paceline.stages.lm.folder import weights_identity
from paceline.stages.lm.rank_tiers import RankTiers

__all__ = ["serial_tiers", "tiers_of"]


def tiers_of(topology: Topology, rank: int, models: Models) -> RankTiers | None:
    """The tiers of a rank; None where its group has none, or where it runs no model."""
    spec = topology.tiers.get(Placement(topology).group_of_rank(rank))
    if spec is None:
        return None
    roles = Roles.of(topology)
    if rank == roles.drafter:
        return None if models.draft is None else RankTiers(spec, weights_identity(models.draft))
    identity = weights_identity(models.target)
    return RankTiers(spec, identity, roles.verifiers.index(rank), len(roles.verifiers))


def serial_tiers(topology: Topology, models: Models) -> RankTiers | None:
    """Those of the serial reference, which holds all layers with the budgets of one rank of the verifier's group."""
    verify = next(stage for stage in topology.stages.values() if stage.kind == "verify")
    spec = topology.tiers.get(verify.group)
    return None if spec is None else RankTiers(spec, weights_identity(models.target))
