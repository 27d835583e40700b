"""The smallest things that programs are made of: units of compute, their passes, the items they send, their names."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from paceline.pipeline.topology import ContextMode, FrameTopology
from paceline.pipeline.view import View

__all__ = ["MAY_END", "Give", "Key", "ModelShape", "Row", "Unit", "UnitKind", "kv_part", "kv_run"]


class Key(NamedTuple):
    """Names one item for good: `edge` is the index in the topology, `position` the frame, `part` the place inside it
    (0, or level * layers + first layer for KV)."""

    edge: int
    session: int
    position: int
    part: int = 0


class UnitKind(StrEnum):
    """What a unit does."""

    emit = "emit"
    """source: send a prompt frame or the action of the next frame"""
    receive = "receive"
    """denoise: take in a latent and the decisions that came with it"""
    prefill = "prefill"
    """denoise: the clean pass of a prompt frame"""
    layers = "layers"
    """denoise: some layers of some rows"""
    drain = "drain"
    """denoise: take in KV ahead of the pass that reads it, or that a skipped pass would have read"""
    discard = "discard"
    """denoise: take KV that nobody reads any more, as the session has ended"""
    end = "end"
    """denoise: hand on the end of the session"""
    decode = "decode"
    sleep = "sleep"
    show = "show"
    """sink: a finished frame"""


MAY_END = frozenset({UnitKind.receive, UnitKind.decode, UnitKind.sleep, UnitKind.show})
"""Units that take the item of a frame, which may be the end of the session in its place."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What plans, credits and contexts need of a model. Bytes are those of one frame."""

    layers: int
    latent_bytes: int
    kv_layer_bytes: int
    frame_bytes: int
    view: View | None = None
    """What a frame shows, where frames can be recalled by pose"""
    memory_bytes: int = 0
    """Of what a frame reads from the context memory; it travels with the latent"""


@dataclass(frozen=True, slots=True)
class Row:
    """One pass: `step` of `frame`; step S is the clean pass."""

    frame: int
    step: int


@dataclass(frozen=True, slots=True)
class Give:
    """One item that a unit sends when it is done. A KV give names the row's level and its run of layers."""

    edge: int
    position: int
    part: int
    nbytes: int
    layers: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Unit:
    """The smallest thing that a group computes without stopping."""

    stage: str
    session: int
    kind: UnitKind
    slot: int
    frame: int
    rows: tuple[Row, ...] = ()
    layers: tuple[int, int] = (0, 0)
    takes: tuple[Key, ...] = ()
    gives: tuple[Give, ...] = ()

    @property
    def priority(self) -> tuple[int, int, int]:
        """Smaller runs first: older slots, then later steps (they free more), then lower sessions."""
        return self.slot, -(max(row.step for row in self.rows) if self.rows else 1 << 30), self.session


def kv_part(level: int, layer: int, layers: int) -> int:
    """The `part` of a KV item: its level and the first layer that it carries."""
    return level * layers + layer


def kv_run(topology: FrameTopology, shape: ModelShape, edge: int, level: int) -> int:
    """Layers in one KV item of `level` on an edge.

    KV is streamed by runs of layers only where the reader can use it in the same slot, one run behind. A level that its
    stage computes before another one of the same slot is there long before, so it goes whole.
    """
    spec = topology.edges[edge]
    streams = topology.context.mode is ContextMode.cascade and level == topology.stage_steps(spec.source)[0]
    return min(spec.layers, shape.layers) if streams else shape.layers
