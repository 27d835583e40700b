"""Keys of stages and edges that have no meaning where they stand."""

from __future__ import annotations

from collections.abc import Iterator

from paceline.pipeline.problem import Problem
from paceline.pipeline.topology import MODELS, Topology

__all__ = ["check_edge_keys", "check_stage_keys"]

_EVERY_STAGE = ("kind", "group", "ms")


def check_stage_keys(topology: Topology) -> Iterator[Problem]:
    """Keys of another kind of stage."""
    for name, stage in topology.stages.items():
        for key in type(stage).model_fields:
            kinds = topology.stage_keys.get(key, ())
            if key not in stage.model_fields_set or key in _EVERY_STAGE or stage.kind in kinds:
                continue
            it = "them" if key == "steps" else "it"
            other = f" or write kind: {' or '.join(kinds)}" if kinds else ""
            yield Problem(("stages", name, key), f"a {stage.kind} stage takes no {key}", f"remove {it}{other}")


def check_edge_keys(topology: Topology) -> Iterator[Problem]:
    """Keys of another workload's edges, and those of KV on an edge that carries items."""
    for index, edge in enumerate(topology.edges):
        for key in ("carries", "layers"):
            takers = [name for name, model in MODELS.items() if key in model.edge_keys]
            if key not in edge.model_fields_set:
                continue
            if topology.workload not in takers:
                right = f"remove it; only workload {' and '.join(takers)} takes it"
                yield Problem(("edges", index, key), f"has no meaning in workload {topology.workload}", right)
            elif key == "layers" and edge.carries != "kv":
                right = "remove it or write carries: kv"
                yield Problem(("edges", index, key), f"is for KV, and this edge carries {edge.carries}s", right)
