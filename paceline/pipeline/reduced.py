"""Smaller topologies that stand for a large one, so that a proof of liveness costs what the shape of the pipeline is
worth, and not what its numbers are.

*The context.* What programs take and give does not depend on how far back passes read, once that is beyond the steps: a
frame that is `steps` + 1 frames back is read at the level of the finished frame, whatever the mode, and went to its
reader when it was nearer (`Context.fresh`); and whether any later pass reads a level at all (`Context.needed`) is
decided within that distance, too. So all windows of `steps` + 2 frames or more make the same units, whatever `sinks`
and `recall` are: a sink is a frame that stays after it came, and what is recalled came by distance before. A test
compares the programs unit by unit.

*The prompt.* Prompt frames are computed by every stage and travel as single items along the path of the frames. All
stages can do so one frame after the other, and afterwards every edge is as empty as it was at the start; in a
persistent net one execution decides. So a prompt of one frame stands for all, with the frames behind it moved up.

*The credits.* More credit never stops a persistent net (see `liveness.py`): each execution under small limits is one
under large limits as well. So where a topology with fewer items in flight is live, the given one is; where it is not,
nothing is known, and the given one is played.

*Chains.* In a chain of stages that take one item and give one for each frame, the marked graph is a path with a credit
edge back for every edge. Its only circuits are those of one edge and its credits, which carry at least one token, and
those of a stage with itself. A marked graph is live if and only if every circuit carries a token (Commoner et al. 1971,
as above), so such a chain is live if and only if every item fits its edge.
"""

from __future__ import annotations

from paceline.pipeline.flow import item_cycle
from paceline.pipeline.stage import StageKind
from paceline.pipeline.topology import FrameTopology

__all__ = ["is_live_chain", "with_few_credits", "with_short_context", "with_short_prompt"]

_FEW = 8
"""Items in flight that nearly every live topology is content with."""


def with_short_context(topology: FrameTopology) -> FrameTopology:
    """The topology with the shortest context that makes the same programs."""
    context, least = topology.context, topology.steps + 2
    if context.window <= least:
        return topology
    short = context.model_copy(update={"window": least, "sinks": 0, "recall": 0})
    return topology.with_context(short)


def with_short_prompt(topology: FrameTopology) -> FrameTopology:
    """The topology with a prompt of one frame, and as many sinks behind the prompt as it had."""
    context = topology.context
    short = context.model_copy(update={"prompt": 1, "sinks": max(context.sinks - context.prompt + 1, 0)})
    return topology.with_context(short)


def with_few_credits(topology: FrameTopology) -> FrameTopology:
    """The topology with at most a few items in flight on edges that carry frames."""
    edges = tuple(
        edge.model_copy(update={"inflight": _FEW}) if edge.carries == "item" and edge.inflight > _FEW else edge
        for edge in topology.edges
    )
    return topology.model_copy(update={"edges": edges})


def is_live_chain(topology: FrameTopology) -> bool:
    """Whether a topology is a chain of sleeping stages in which every item fits its edge. False says nothing."""
    edges = topology.edges
    sleeping = {StageKind.source, StageKind.sleep, StageKind.sink}
    if any(stage.kind not in sleeping for stage in topology.stages.values()):
        return False
    if any(edge.carries != "item" for edge in edges):
        return False
    sources, targets = {edge.source for edge in edges}, {edge.target for edge in edges}
    if any(edge.source == edge.target for edge in edges):
        return False
    one_way = len(sources) == len(targets) == len(edges) == len(topology.stages) - 1
    return one_way and not item_cycle(topology) and all(edge.bytes >= topology.item_bytes for edge in edges)
