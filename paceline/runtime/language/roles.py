"""Who is who in a language workload, and the ways between them."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.pipeline.placement import Placement, Route
from paceline.pipeline.stage import StageKind
from paceline.pipeline.topology import Topology

__all__ = ["Roles"]


@dataclass(frozen=True, slots=True)
class Roles:
    """Ranks and edges by what they are for. `verifiers` hold runs of the target's layers, in order."""

    drafter: int
    verifiers: tuple[int, ...]
    windows: int
    """Edge from the drafter to the leader."""
    verdicts: int
    """Edge from the leader to the drafter."""
    ring: int | None
    """Edge among the verifiers; hidden states go up, verdicts from the last to the first."""

    @classmethod
    def of(cls, topology: Topology) -> Roles:
        """The roles of a valid topology."""
        names = {stage.kind: name for name, stage in topology.stages.items()}
        draft, verify = names[StageKind.draft], names[StageKind.verify]
        placement = Placement(topology)
        edges = {(edge.source, edge.target): index for index, edge in enumerate(topology.edges)}
        return cls(
            drafter=placement.ranks(topology.stages[draft].group)[0],
            verifiers=tuple(placement.ranks(topology.stages[verify].group)),
            windows=edges[draft, verify],
            verdicts=edges[verify, draft],
            ring=edges.get((verify, verify)),
        )

    @property
    def first(self) -> int:
        """The first verifier: the leader, where sessions are admitted and committed."""
        return self.verifiers[0]

    @property
    def last(self) -> int:
        """The last verifier, which judges."""
        return self.verifiers[-1]

    def next_of(self, rank: int) -> int:
        """The verifier behind another one."""
        return self.verifiers[self.verifiers.index(rank) + 1]

    def routes(self) -> list[Route]:
        """All ways that items take."""
        found = [Route(self.windows, self.drafter, self.first), Route(self.verdicts, self.first, self.drafter)]
        if self.ring is not None and len(self.verifiers) > 1:
            pairs = [*zip(self.verifiers[:-1], self.verifiers[1:], strict=True), (self.last, self.first)]
            found += [Route(self.ring, source, target) for source, target in dict.fromkeys(pairs)]
        return found

    def name(self, rank: int) -> str:
        """What messages call a rank."""
        if rank == self.drafter:
            return f"worker rank {rank} (drafter)"
        if len(self.verifiers) == 1:
            return f"worker rank {rank} (verifier)"
        return f"worker rank {rank} (verifier, run {self.verifiers.index(rank) + 1} of {len(self.verifiers)})"
