"""What a topology's memory tiers ask of its groups, and what may change bits there."""

from __future__ import annotations

from collections.abc import Iterator

from paceline.pipeline.problem import Problem, nearest
from paceline.pipeline.speculation.settings import DrafterKind
from paceline.pipeline.tiers import TierMode
from paceline.pipeline.topology import StageKind, Topology

__all__ = ["check_tiers", "check_tiers_determinism"]

_HOLDS_KV = {
    "world": (StageKind.denoise,),
    "language": (StageKind.draft, StageKind.verify),
    "sleep": (),
}


def check_tiers(topology: Topology) -> Iterator[Problem]:
    """Tiers of groups that don't exist or hold no KV, and settings that can't act."""
    holding = {stage.group for stage in topology.stages.values() if stage.kind in _HOLDS_KV[topology.workload]}
    drafters = {stage.group for stage in topology.stages.values() if stage.kind is StageKind.draft}
    for name, spec in topology.tiers.items():
        at = ("tiers", name)
        if name not in topology.groups:
            yield Problem(at, f"'{name}' is no group", nearest(name, topology.groups))
        elif name not in holding:
            kinds = " or ".join(_HOLDS_KV[topology.workload])
            right = f"give them to a group with a {kinds} stage" if kinds else "remove them"
            yield Problem(at, f"no stage on '{name}' holds KV", right)
        elif name in drafters and topology.speculation.drafter is not DrafterKind.model:
            wrong = f"a drafter of kind {topology.speculation.drafter} holds no KV"
            yield Problem(at, wrong, "remove them or write speculation.drafter: model")
        if topology.workload == "world" and spec.mode is not TierMode.exact:
            right = "write mode: exact"
            yield Problem((*at, "mode"), f"{spec.mode} is for language models; frames read all their context", right)
        if spec.bits is not None and not spec.dram and spec.nvme is None:
            right = "remove it or give dram or nvme"
            yield Problem((*at, "bits"), "is for KV outside hbm, and there is none", right)


def check_tiers_determinism(topology: Topology) -> Iterator[Problem]:
    """Approximations depend on where blocks lie, and that on timing. A drafter's can't change what comes out, unless
    its probabilities are judged."""
    if not topology.deterministic:
        return
    kinds = {StageKind.denoise, StageKind.verify}
    if topology.speculation.coupling == "rejection":
        kinds.add(StageKind.draft)
    held = {stage.group for stage in topology.stages.values() if stage.kind in kinds}
    for name, spec in topology.tiers.items():
        if name not in held:
            continue
        if spec.mode is not TierMode.exact and topology.workload != "world":
            wrong = f"{spec.mode} reads what happens to lie in hbm, which may change bits"
            yield Problem(("tiers", name, "mode"), wrong, "write mode: exact or deterministic: false")
        if spec.bits is not None:
            wrong = f"is {spec.bits}: how often a block was moved out of hbm may change bits"
            yield Problem(("tiers", name, "bits"), wrong, "leave it out or write deterministic: false")
