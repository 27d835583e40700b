"""How items and KV flow between the stages of a topology: which edges its stages need, and cycles among them."""

from __future__ import annotations

import math
from itertools import pairwise

from paceline.pipeline.stage import STAGES, StageKind
from paceline.pipeline.topology import ContextMode, FrameTopology, Topology, WorldTopology

__all__ = ["compute_chain", "item_cycle", "needed_item_edges", "needed_kv_edges", "needed_latent_edges", "stages_of"]


def stages_of(topology: Topology, kind: StageKind) -> list[str]:
    """Names of the stages of a kind, as declared."""
    return [name for name, stage in topology.stages.items() if stage.kind == kind]


def compute_chain(topology: Topology) -> list[str]:
    """The stages that make a frame, in the order in which it passes them: denoise stages by step, or sleep stages along
    their item edges."""
    placed = [name for name in stages_of(topology, StageKind.denoise) if topology.stages[name].steps]
    if placed:
        return sorted(placed, key=lambda name: _places(topology.stages[name]))
    following = {edge.source: edge.target for edge in reversed(topology.edges) if edge.carries == "item"}
    passed: dict[str, None] = {}
    for start in [*stages_of(topology, StageKind.source), *topology.stages]:
        here: str | None = start
        while here is not None and here not in passed:
            passed[here] = None
            here = following.get(here)
    return [name for name in passed if name in topology.stages and topology.stages[name].kind == StageKind.sleep]


def _places(stage: STAGES) -> list[float]:
    """The steps of a stage in rising order; the clean pass follows all."""
    return sorted(math.inf if isinstance(step, str) else step for step in stage.steps)


def needed_item_edges(topology: WorldTopology) -> list[tuple[str, str]]:
    """Item edges of a world whose steps are all placed: source, denoise stages in step order, decode, sink. A clean
    pass on a stage of its own hangs off the last step's stage, which sends the finished frame to it and to decode."""
    chain = compute_chain(topology)
    source, decode, sink = (
        stages_of(topology, kind)[0] for kind in (StageKind.source, StageKind.decode, StageKind.sink)
    )
    aside = [name for name in chain if topology.stage_steps(name) == (topology.last_level,)]
    main = [name for name in chain if name not in aside]
    path = [source, *main, decode, sink]
    return [*pairwise(path), *((main[-1], name) for name in aside if main)]


def needed_kv_edges(topology: FrameTopology) -> list[tuple[str, str]]:
    """KV edges between denoise stages that the context mode reads. A stage's own KV needs none."""
    chain = compute_chain(topology)
    match topology.context.mode:
        case ContextMode.matched:
            return []
        case ContextMode.clean:
            writers = [name for name in chain if topology.last_level in topology.stage_steps(name)]
            return [(writer, reader) for writer in writers for reader in chain if reader != writer]
        case ContextMode.cascade | ContextMode.staggered:
            return [(writer, reader) for place, writer in enumerate(chain) for reader in chain[:place]]


def needed_latent_edges(topology: FrameTopology) -> list[tuple[str, str]]:
    """The edge by which finished latents go to the context memory, from the stage of the last step to that of the
    first. One stage that has both needs none, nor does a topology without a memory."""
    if topology.context.memory is None:
        return []
    chain = compute_chain(topology)
    firsts = [name for name in chain if 0 in topology.stage_steps(name)]
    lasts = [name for name in chain if topology.last_level - 1 in topology.stage_steps(name)]
    return [(last, first) for last in lasts for first in firsts if last != first]


def item_cycle(topology: Topology) -> list[str]:
    """The stages along one cycle of item edges, the first one repeated at the end; empty where there is none."""
    following: dict[str, list[str]] = {}
    for edge in topology.edges:
        if edge.carries == "item" and edge.source != edge.target:
            following.setdefault(edge.source, []).append(edge.target)
    done: set[str] = set()
    for start in following:
        trail = [start]
        while trail and trail[0] not in done:
            ahead = next((target for target in following.get(trail[-1], ()) if target not in done), None)
            if ahead is None:
                done.add(trail.pop())
            elif ahead in trail:
                return [*trail[trail.index(ahead) :], ahead]
            else:
                trail.append(ahead)
    return []
