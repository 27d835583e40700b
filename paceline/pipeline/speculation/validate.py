"""What a language workload asks of groups and edges."""

from __future__ import annotations

from collections.abc import Iterator

from paceline.pipeline.problem import Problem
from paceline.pipeline.stage import StageKind
from paceline.pipeline.topology import LanguageTopology

__all__ = ["check_speculation"]


def check_speculation(topology: LanguageTopology) -> Iterator[Problem]:
    """One drafter, edges both ways, and one among the verifiers where there are several."""
    names = {stage.kind: name for name, stage in topology.stages.items()}
    draft, verify = names[StageKind.draft], names[StageKind.verify]
    drafters = topology.groups[topology.stages[draft].group]
    verifiers = topology.groups[topology.stages[verify].group]
    if topology.stages[draft].group == topology.stages[verify].group:
        yield Problem(("stages", draft, "group"), f"is that of '{verify}'", "give the drafter a group of its own")
    elif drafters.ranks > 1:
        wrong = f"has {drafters.ranks} ranks, and the drafter runs on one"
        yield Problem(("groups", topology.stages[draft].group, "ranks"), wrong, "write ranks: 1")
    present = {(edge.source, edge.target) for edge in topology.edges}
    needed = [(draft, verify, "windows"), (verify, draft, "verdicts")]
    if verifiers.ranks > 1:
        needed.append((verify, verify, "hidden states between its ranks"))
    for source, target, what in needed:
        if (source, target) not in present:
            right = f"add {{from: {source}, to: {target}, via: zmq}}, which carries {what}"
            yield Problem(("edges",), f"nothing goes from {source} to {target}", right)
    for index, edge in enumerate(topology.edges):
        if (edge.source, edge.target) == (verify, verify) and verifiers.ranks == 1:
            yield Problem(("edges", index), "joins the ranks of a group that has one", "remove this edge")
