"""What a single key of a topology can't know: whether groups, stages, edges, steps and schedule fit together.

Every check is a pure generator of problems without a file or line; `load.py` adds those. Each names the keys that it
relies on, so that a check is left out where one of them is broken already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from paceline.pipeline.placement import Placement
from paceline.pipeline.problem import Problem, nearest
from paceline.pipeline.speculation.validate import check_speculation
from paceline.pipeline.stage import StageKind
from paceline.pipeline.topology import (
    FrameTopology,
    LatePolicy,
    Schedule,
    SleepTopology,
    Topology,
    Transport,
    WorldTopology,
)
from paceline.pipeline.validate_flow import (
    check_chain,
    check_cycle,
    check_item_path,
    check_kv_edges,
    check_latent_edges,
    check_layers,
    check_steps,
)
from paceline.pipeline.validate_tiers import check_frame_tiers, check_text_tiers, check_tiers, check_tiers_determinism

__all__ = ["UNKNOWN", "check_world_size", "validate"]

UNKNOWN = "?"
"""Stands in for a name that could not be read; no name of a stage or group can be this."""

_MOST_RANKS = 16384

Check = Callable[[Any], Iterator[Problem]]


def validate(topology: Topology, broken: frozenset[str] | set[str] = frozenset()) -> list[Problem]:
    """All problems of a topology whose keys are right one by one; `broken` names keys that are not, as patterns such as
    `stages.*.steps`."""
    found: list[Problem] = []
    failed = set(broken)
    for workloads, check, relies_on, spoils in _CHECKS:
        if topology.workload not in workloads or not failed.isdisjoint(relies_on.split()):
            continue
        problems = list(check(topology))
        found += problems
        if problems:
            failed |= set(spoils.split())
    return found


def check_world_size(topology: Topology, world_size: int) -> list[Problem]:
    """Whether the groups hold as many ranks as a launcher started processes."""
    if world_size == topology.world_size:
        return []
    groups = ", ".join(f"{name}: {group.ranks}" for name, group in topology.groups.items())
    wrong = f"add up to {topology.world_size} ranks ({groups}), but {world_size} processes were started"
    return [Problem(("groups",), wrong, f"start {topology.world_size} processes or change the ranks of a group")]


def _groups(topology: Topology) -> Iterator[Problem]:
    """Stages on unknown groups, groups that no stage uses, several processes on one GPU."""
    used = {stage.group for stage in topology.stages.values()}
    for name, stage in topology.stages.items():
        if stage.group not in topology.groups and stage.group != UNKNOWN:
            wrong = f"'{stage.group}' is no group"
            yield Problem(("stages", name, "group"), wrong, nearest(stage.group, topology.groups))
    # A group that looks unused may be the one that a misspelt name means.
    for name in topology.groups if used <= set(topology.groups) else ():
        if name not in used:
            yield Problem(("groups", name), "has no stage", "place a stage on it or remove the group")
    if topology.world_size > _MOST_RANKS:
        wrong = f"add up to {topology.world_size} ranks"
        yield Problem(("groups",), wrong, f"write at most {_MOST_RANKS} together")
    for name, group in topology.groups.items():
        if ":" in group.device and group.ranks > 1:
            wrong = f"puts {group.ranks} ranks on one GPU, {group.device}"
            right = "write device: cuda, which gives each rank a GPU of its own, or ranks: 1"
            yield Problem(("groups", name, "ranks"), wrong, right)


def _edge_ends(topology: Topology) -> Iterator[Problem]:
    """Edges from or to unknown stages, from a stage to itself, and edges given twice."""
    first: dict[tuple[str, str, str], int] = {}
    for index, edge in enumerate(topology.edges):
        for key, name in (("from", edge.source), ("to", edge.target)):
            if name not in topology.stages and name != UNKNOWN:
                yield Problem(("edges", index, key), f"'{name}' is no stage", nearest(name, topology.stages))
        if UNKNOWN in (edge.source, edge.target):
            continue
        ring = edge.source in topology.stages and topology.stages[edge.source].kind == StageKind.verify
        if edge.source == edge.target and not ring:
            right = "remove it; what a stage keeps for itself needs no edge"
            yield Problem(("edges", index), f"goes from {edge.source} to itself", right)
        earlier = first.setdefault((edge.source, edge.target, edge.carries), index)
        if earlier != index:
            wrong = f"is the same as edge {earlier}: {edge.carries} from {edge.source} to {edge.target}"
            yield Problem(("edges", index), wrong, "keep one of the two")


def _kinds(topology: Topology) -> Iterator[Problem]:
    """The stages that a workload has, and their number."""
    allowed = topology.stage_kinds
    several = {topology.compute_kind}
    seen: dict[StageKind, str] = {}
    for name, stage in topology.stages.items():
        if stage.kind not in allowed:
            wrong = f"'{stage.kind}' has no place in workload {topology.workload}"
            yield Problem(("stages", name, "kind"), wrong, f"use {', '.join(allowed[:-1])} or {allowed[-1]}")
        elif stage.kind in seen and stage.kind not in several:
            wrong = f"is a second {stage.kind} beside '{seen[stage.kind]}'"
            yield Problem(("stages", name, "kind"), wrong, f"keep exactly one {stage.kind}")
        seen.setdefault(stage.kind, name)
    for kind in allowed:
        if kind not in seen:
            number = "at least one" if kind in several else "exactly one"
            wrong = f"has no stage of kind {kind}"
            yield Problem(("stages",), wrong, f"add {number}: workload {topology.workload} needs it")


def _session_home(topology: FrameTopology) -> Iterator[Problem]:
    """Source and sink on one group: the session lives there."""
    homes = {stage.kind: (name, stage.group) for name, stage in topology.stages.items()}
    source, sink = homes[StageKind.source], homes[StageKind.sink]
    if source[1] != sink[1]:
        wrong = f"the sink is on '{sink[1]}' but the source '{source[0]}' is on '{source[1]}'"
        right = "put both on one group, where the session lives"
        yield Problem(("stages", sink[0], "group"), wrong, right)


def _local_edges(topology: Topology) -> Iterator[Problem]:
    """`via: local` between ranks that are not the same."""
    placement = Placement(topology)
    for index, edge in enumerate(topology.edges):
        if edge.source == edge.target and edge.via == Transport.local:
            yield Problem(("edges", index, "via"), "local can't carry what goes between ranks", "use dist or zmq")
            continue
        for session in range(2 if edge.via == Transport.local else 0):
            source, target = (placement.group_of(stage, session) for stage in (edge.source, edge.target))
            if source != target:
                odd = " for odd sessions (schedule: mirrored)" if session else ""
                wrong = (
                    f"local can't carry {edge.source} -> {edge.target} from group '{source}' to group '{target}'{odd}"
                )
                yield Problem(("edges", index, "via"), wrong, "use dist or zmq")
                break


def _schedule(topology: FrameTopology) -> Iterator[Problem]:
    """What the mirrored and the batched schedule ask of the placement."""
    kind = topology.compute_kind
    stages = {name: stage.group for name, stage in topology.stages.items() if stage.kind == kind}
    if topology.schedule == Schedule.mirrored:
        if len(set(stages.values())) < 2:
            right = "spread them over groups or use schedule: wavefront"
            yield Problem(("schedule",), f"mirrored needs {kind} stages on at least 2 groups", right)
        else:
            owner: dict[str, str] = {}
            for name, group in stages.items():
                if owner.setdefault(group, name) != name:
                    wrong = f"'{group}' already has the {kind} stage '{owner[group]}'"
                    yield Problem(("stages", name, "group"), wrong, "mirrored needs a group for each of them")
    elif topology.schedule == Schedule.batched:
        if kind is not StageKind.denoise:
            right = "use serial, wavefront or mirrored"
            yield Problem(("schedule",), f"batched joins denoising steps; workload {topology.workload} has none", right)
            return
        if len(stages) != 1:
            right = "put all steps on one stage or use schedule: wavefront"
            yield Problem(("schedule",), f"batched needs one denoise stage, not {len(stages)}", right)
        for group in set(stages.values()):
            if topology.groups[group].ranks > 1:
                right = "write ranks: 1 or use another schedule"
                yield Problem(("groups", group, "ranks"), "batched needs one rank for its joint forward", right)
        if topology.deterministic:
            right = "write deterministic: false or use schedule: wavefront"
            yield Problem(("schedule",), "batched joins steps in one forward, which may change bits", right)


def _determinism(topology: Topology) -> Iterator[Problem]:
    """What may change bits although `deterministic` is true."""
    if not topology.deterministic:
        return
    for name, stage in topology.stages.items():
        if stage.max_batch > 1:
            right = "write max_batch: 1 or deterministic: false"
            wrong = f"is {stage.max_batch}: a batch of several sessions may change bits"
            yield Problem(("stages", name, "max_batch"), wrong, right)
    used = {stage.group for stage in topology.stages.values() if stage.kind == StageKind.denoise}
    groups = [name for name in topology.groups if name in used]
    for name in groups[1:]:
        first, other = topology.groups[groups[0]], topology.groups[name]
        if other.threads != first.threads:
            wrong = f"is {other.threads}, but {first.threads} on '{groups[0]}': bits depend on the thread count"
            right = "use the same number for all denoise groups or write deterministic: false"
            yield Problem(("groups", name, "threads"), wrong, right)
        if other.device.partition(":")[0] != first.device.partition(":")[0]:
            wrong = f"is {other.device}, but {first.device} on '{groups[0]}': bits depend on the kind of device"
            right = "use one kind for all denoise groups or write deterministic: false"
            yield Problem(("groups", name, "device"), wrong, right)


def _deadline(topology: FrameTopology) -> Iterator[Problem]:
    """A late policy that can't act."""
    if topology.on_late == LatePolicy.wait:
        return
    if topology.deadline_ms is None:
        right = "write deadline_ms, such as 40 for 25 frames/s, or on_late: wait"
        yield Problem(("on_late",), f"{topology.on_late} needs a deadline", right)


def _fewer_steps(topology: WorldTopology) -> Iterator[Problem]:
    """A late policy that leaves steps out where there is only one."""
    if topology.on_late == LatePolicy.fewer_steps and topology.steps < 2:
        right = "raise model.steps or use wait or repeat"
        yield Problem(("on_late",), "fewer_steps can't go below the 1 step of model.steps", right)


def _no_steps(topology: SleepTopology) -> Iterator[Problem]:
    """A late policy that leaves steps out where there are none."""
    if topology.on_late == LatePolicy.fewer_steps:
        yield Problem(("on_late",), f"workload {topology.workload} has no steps to leave out", "use wait or repeat")


def _network(topology: Topology) -> Iterator[Problem]:
    """Sockets beyond loopback without keys."""
    network = topology.network
    if not network.loopback and network.curve is None:
        right = "bind 127.0.0.1 or give network.curve with secret and allow"
        yield Problem(("network", "bind"), f"'{network.bind}' can be reached from other hosts", right)


_ENDS = "stages.*.kind edges.*.from edges.*.to edges.*.carries workload"
_PLACES = "stages.*.kind stages.*.group groups.*.ranks workload"
_STEPS = "stages.*.kind stages.*.steps model.steps context.mode workload"
_ALL, _FRAMES, _WORLD = ("world", "sleep", "language"), ("world", "sleep"), ("world",)
_SLEEP, _LANGUAGE = ("sleep",), ("language",)
# Each check with the workloads that it is for, the keys it relies on, and what can't be relied on any more where it
# found something.
_KV = "stages.*.kind stages.*.group workload speculation.drafter tiers.*.mode kinds placed-groups"
_CHECKS: list[tuple[tuple[str, ...], Check, str, str]] = [
    (_ALL, _groups, "", "placed-groups"),
    (_ALL, _edge_ends, "", "edge-ends"),
    (_ALL, _kinds, "stages.*.kind workload", "kinds"),
    (_WORLD, check_layers, "edges.*.carries edges.*.layers workload", ""),
    (_WORLD, check_steps, f"{_STEPS} kinds", "steps"),
    (_FRAMES, _session_home, f"{_PLACES} kinds placed-groups", ""),
    (_FRAMES, check_cycle, f"{_ENDS} edge-ends", ""),
    (_WORLD, check_item_path, f"{_ENDS} {_STEPS} kinds steps edge-ends", "path"),
    (_SLEEP, check_chain, f"{_ENDS} kinds edge-ends", "path"),
    (_WORLD, check_kv_edges, f"{_ENDS} {_STEPS} kinds steps edge-ends", ""),
    (_WORLD, check_latent_edges, f"{_ENDS} {_STEPS} context.memory kinds steps edge-ends", ""),
    (_FRAMES, _schedule, f"{_PLACES} schedule deterministic kinds placed-groups", "schedule"),
    (
        _ALL,
        _local_edges,
        f"{_PLACES} {_ENDS} {_STEPS} edges.*.via schedule kinds steps placed-groups edge-ends path",
        "",
    ),
    (_ALL, _determinism, "deterministic stages.*.max_batch groups.*.threads groups.*.device stages.*.kind", ""),
    (_FRAMES, _deadline, "on_late deadline_ms model.steps workload", ""),
    (_WORLD, _fewer_steps, "on_late deadline_ms model.steps workload", ""),
    (_SLEEP, _no_steps, "on_late deadline_ms workload", ""),
    (_ALL, _network, "network.bind network.curve", ""),
    (
        _ALL,
        check_tiers,
        _KV,
        "",
    ),
    (_FRAMES, check_frame_tiers, _KV, ""),
    (
        _LANGUAGE,
        check_text_tiers,
        f"{_KV} speculation.coupling deterministic",
        "",
    ),
    (
        _ALL,
        check_tiers_determinism,
        "stages.*.kind stages.*.group workload speculation.coupling deterministic tiers.*.mode tiers.*.bits kinds",
        "",
    ),
    (
        _LANGUAGE,
        check_speculation,
        f"{_PLACES} {_ENDS} edges.*.via kinds placed-groups edge-ends",
        "",
    ),
]
