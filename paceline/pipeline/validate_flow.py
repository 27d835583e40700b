"""Checks of what flows: steps placed once, items on one path without a cycle, KV where the context mode reads it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from paceline.pipeline.flow import item_cycle, needed_item_edges, needed_kv_edges, needed_latent_edges
from paceline.pipeline.problem import Problem
from paceline.pipeline.stage import CLEAN, StageKind
from paceline.pipeline.topology import ContextMode, FrameTopology, SleepTopology, Topology, WorldTopology

__all__ = [
    "check_chain",
    "check_cycle",
    "check_item_path",
    "check_kv_edges",
    "check_latent_edges",
    "check_layers",
    "check_steps",
]


def check_steps(topology: WorldTopology) -> Iterator[Problem]:
    """Every step, and the clean pass where the mode has one, on exactly one stage; runs of steps without a gap."""
    steps, mode = topology.steps, topology.context.mode
    has_clean = mode != ContextMode.matched
    placed: dict[int, str] = {}
    for name, stage in topology.stages.items():
        if stage.kind != StageKind.denoise:
            continue
        if not stage.steps:
            yield Problem(("stages", name, "steps"), "names no step", "write a list such as [0] or [1, clean]")
        for place, step in enumerate(stage.steps):
            at = ("stages", name, "steps", place)
            if step == CLEAN and not has_clean:
                yield Problem(at, "context.mode matched has no clean pass", f"remove it from '{name}'")
            elif step != CLEAN and not 0 <= int(step) < steps:
                right = f"use {_known_steps(steps, has_clean)}, or change model.steps"
                yield Problem(at, f"step {step} does not exist where model.steps is {steps}", right)
            else:
                number = steps if step == CLEAN else int(step)
                if number in placed:
                    wrong = f"{_step_name(number, steps)} is already on '{placed[number]}'"
                    yield Problem(at, wrong, "place each step exactly once")
                placed.setdefault(number, name)
        run = [number for number in topology.stage_steps(name) if 0 <= number <= steps]
        if any(after > before + 1 for before, after in pairwise(run)):
            wrong = f"has a gap: {', '.join(str(step) for step in stage.steps)}"
            yield Problem(("stages", name, "steps"), wrong, "give each stage consecutive steps; clean follows the last")
    for number in range(steps + has_clean):
        if number not in placed:
            right = f"add {CLEAN if number == steps else number} to the steps of a denoise stage"
            why = f"context.mode {mode} needs it" if number == steps else f"model.steps is {steps}"
            yield Problem(("stages",), f"{_step_name(number, steps)} is on no stage ({why})", right)


def check_layers(topology: WorldTopology) -> Iterator[Problem]:
    """Layers of KV on an edge that carries none."""
    for index, edge in enumerate(topology.edges):
        if "layers" in edge.model_fields_set and edge.carries != "kv":
            wrong = f"is for KV, and this edge carries {edge.carries}s"
            yield Problem(("edges", index, "layers"), wrong, "remove it or write carries: kv")


def check_cycle(topology: FrameTopology) -> Iterator[Problem]:
    """A cycle of item edges: every stage on it would wait for its own output."""
    cycle = item_cycle(topology)
    if cycle:
        on_cycle = set(pairwise(cycle))
        last = max(i for i, edge in enumerate(topology.edges) if (edge.source, edge.target) in on_cycle)
        wrong = f"closes a cycle without a credit: {' -> '.join(cycle)}"
        right = "remove one of these edges, or write carries: kv where KV flows back"
        yield Problem(("edges", last), wrong, right)


def check_item_path(topology: WorldTopology) -> Iterator[Problem]:
    """Item edges of a world: those of its path, and no others."""
    given, loose = _item_edges(topology)
    needed = needed_item_edges(topology)
    way = " -> ".join(_main_path(needed))
    for pair, index in sorted(loose.items(), key=lambda entry: entry[1]):
        if pair not in needed:
            yield Problem(("edges", index), f"{pair[0]} -> {pair[1]} is not on the way {way}", "remove or redirect it")
    for source, target in needed:
        if (source, target) not in given:
            wrong = f"lack the item edge {source} -> {target} of the way {way}"
            if (source, target) not in pairwise(_main_path(needed)):
                wrong = f"lack the item edge {source} -> {target}, which takes finished frames to the clean pass"
            yield Problem(("edges",), wrong, f"add {_edge_text(topology, source, target)}")


def check_kv_edges(topology: WorldTopology) -> Iterator[Problem]:
    """KV edges: those that the context mode reads, and no others."""
    mode = topology.context.mode
    needed = needed_kv_edges(topology)
    given = {(edge.source, edge.target) for edge in topology.edges if edge.carries == "kv"}
    for index, edge in enumerate(topology.edges):
        pair = (edge.source, edge.target)
        if edge.carries != "kv" or pair in needed or pair[0] == pair[1]:
            continue
        others = [name for name in pair if topology.stages[name].kind != StageKind.denoise]
        if others:
            wrong = f"carries KV, but '{others[0]}' is no denoise stage"
        else:
            wrong = f"carries KV {pair[0]} -> {pair[1]}, which context.mode {mode} does not read"
        yield Problem(("edges", index, "carries"), wrong, "remove the edge" if not others else "write carries: item")
    for source, target in needed:
        if (source, target) not in given:
            wrong = f"lack the KV edge {source} -> {target}, which context.mode {mode} reads"
            yield Problem(("edges",), wrong, f"add {_edge_text(topology, source, target, 'kv')}")


def check_latent_edges(topology: FrameTopology) -> Iterator[Problem]:
    """The edge by which finished latents go to the context memory, and no other."""
    needed = needed_latent_edges(topology)
    given = {(edge.source, edge.target) for edge in topology.edges if edge.carries == "latent"}
    for index, edge in enumerate(topology.edges):
        if edge.carries == "latent" and (edge.source, edge.target) not in needed:
            why = "to no context memory"
            if needed:
                why = f"from '{edge.source}' to '{edge.target}', and the context memory gets them {_way(needed[0])}"
            elif topology.context.memory is not None:
                why = "between stages, but one stage has the first and the last step, and the context memory with them"
            yield Problem(("edges", index, "carries"), f"carries finished latents {why}", "remove the edge")
    for source, target in needed:
        if (source, target) not in given:
            wrong = f"lack the edge {source} -> {target}, by which finished latents go to the context memory"
            yield Problem(("edges",), wrong, f"add {_edge_text(topology, source, target, 'latent')}")


def _way(ends: tuple[str, str]) -> str:
    return f"from '{ends[0]}' to '{ends[1]}'"


def _item_edges(topology: FrameTopology) -> tuple[dict[tuple[str, str], int], dict[tuple[str, str], int]]:
    """The index of the item edge between two stages: of all, and of those that are on no cycle."""
    on_cycle = set(pairwise(item_cycle(topology)))
    given = {
        (edge.source, edge.target): index
        for index, edge in reversed([*enumerate(topology.edges)])
        if edge.carries == "item"
    }
    return given, {pair: index for pair, index in given.items() if pair not in on_cycle and pair[0] != pair[1]}


def check_chain(topology: SleepTopology) -> Iterator[Problem]:
    """A sleep workload: one edge out of every stage but the sink, one into every stage but the source."""
    _, edges = _item_edges(topology)
    onward = {edge.source for edge in topology.edges if edge.carries == "item"}
    reached = {edge.target for edge in topology.edges if edge.carries == "item"}
    outgoing: dict[str, str] = {}
    incoming: dict[str, str] = {}
    for (source, target), index in sorted(edges.items(), key=lambda entry: entry[1]):
        for end, kind in ((source, StageKind.sink), (target, StageKind.source)):
            if topology.stages[end].kind == kind:
                way = "lead on from the sink" if kind == StageKind.sink else "lead to the source"
                yield Problem(("edges", index), f"{source} -> {target} can't {way}", "remove or redirect it")
        if outgoing.setdefault(source, target) != target:
            wrong = f"{source} -> {target} branches off: {source} already sends to {outgoing[source]}"
            yield Problem(("edges", index), wrong, "make the stages one chain")
        if incoming.setdefault(target, source) != source:
            wrong = f"{source} -> {target} joins in: {target} already hears from {incoming[target]}"
            yield Problem(("edges", index), wrong, "make the stages one chain")
    for name, stage in topology.stages.items():
        if stage.kind != StageKind.sink and name not in onward:
            yield Problem(("stages", name), "sends items nowhere", f"add {_edge_text(topology, name, 'NEXT')}")
        if stage.kind != StageKind.source and name not in reached:
            wrong = "can't be reached from the source"
            yield Problem(("stages", name), wrong, f"add {_edge_text(topology, 'PREVIOUS', name)}")


def _main_path(edges: list[tuple[str, str]]) -> list[str]:
    """The stages from source to sink; side branches come last in the list of needed edges and are left out."""
    path = list(edges[0])
    for source, target in edges[1:]:
        if source == path[-1]:
            path.append(target)
    return path


def _edge_text(topology: Topology, source: str, target: str, carries: str = "item") -> str:
    """The edge as one would write it."""
    ends = [topology.stages[name].group for name in (source, target) if name in topology.stages]
    via = ", via: dist" if len(set(ends)) > 1 else ""
    what = "" if carries == "item" else f", carries: {carries}"
    return f"{{from: {source}, to: {target}{what}{via}}}"


def _step_name(number: int, steps: int) -> str:
    return "the clean pass" if number == steps else f"step {number}"


def _known_steps(steps: int, has_clean: bool) -> str:
    numbers = "0" if steps == 1 else f"0 to {steps - 1}"
    return f"{numbers} or clean" if has_clean else numbers
