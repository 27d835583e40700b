"""What a topology's memory tiers ask of its groups, and what may change bits there."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from paceline.pipeline.problem import Problem, nearest
from paceline.pipeline.stage import StageKind
from paceline.pipeline.tiers import TierMode
from paceline.pipeline.topology import FrameTopology, LanguageTopology, Topology

__all__ = ["check_frame_tiers", "check_text_tiers", "check_tiers", "check_tiers_determinism"]


def check_tiers(topology: Topology) -> Iterator[Problem]:
    """Tiers of groups that don't exist or hold no KV, and settings that can't act."""
    holding = _groups_of(topology, topology.kv_kinds)
    for name, spec in topology.tiers.items():
        at = ("tiers", name)
        if name not in topology.groups:
            yield Problem(at, f"'{name}' is no group", nearest(name, topology.groups))
        elif name not in holding:
            kinds = " or ".join(topology.kv_kinds)
            right = f"give them to a group with a {kinds} stage" if kinds else "remove them"
            yield Problem(at, f"no stage on '{name}' holds KV", right)
        if spec.bits is not None and not spec.dram and spec.nvme is None:
            right = "remove it or give dram or nvme"
            yield Problem((*at, "bits"), "is for KV outside hbm, and there is none", right)


def check_frame_tiers(topology: FrameTopology) -> Iterator[Problem]:
    """Tiers of frames, which read all their context."""
    for name, spec in topology.tiers.items():
        if spec.mode is not TierMode.exact:
            wrong = f"{spec.mode} is for language models; frames read all their context"
            yield Problem(("tiers", name, "mode"), wrong, "write mode: exact")


def check_text_tiers(topology: LanguageTopology) -> Iterator[Problem]:
    """Modes that may change bits."""
    held = _groups_of(topology, topology.output_kv_kinds)
    for name, spec in topology.tiers.items():
        if topology.deterministic and name in held and spec.mode is not TierMode.exact:
            wrong = f"{spec.mode} reads what happens to lie in hbm, which may change bits"
            yield Problem(("tiers", name, "mode"), wrong, "write mode: exact or deterministic: false")


def _groups_of(topology: Topology, kinds: Collection[StageKind]) -> set[str]:
    """Groups with a stage of one of these kinds."""
    return {stage.group for stage in topology.stages.values() if stage.kind in kinds}


def check_tiers_determinism(topology: Topology) -> Iterator[Problem]:
    """How often KV was stored in fewer bits depends on where blocks lie, and that on timing."""
    if not topology.deterministic:
        return
    held = _groups_of(topology, topology.output_kv_kinds)
    for name, spec in topology.tiers.items():
        if name not in held:
            continue
        if spec.bits is not None:
            wrong = f"is {spec.bits}: how often a block was moved out of hbm may change bits"
            yield Problem(("tiers", name, "bits"), wrong, "leave it out or write deterministic: false")
