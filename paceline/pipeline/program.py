"""The dataflow program: the units of compute of every stage and session, in order, with what each takes and gives.

One description for all who need it: the worker runs the units with real time, the simulator with virtual time, and the
liveness check plays them as a token game. A *stream* is one stage's units for one session; units of a stream run in
order, and a unit may run once all it takes has arrived and there is credit for all it gives. Nothing here knows how
long a unit lasts, so nothing here can make the output depend on it.

*A program has no end of its own.* Its session ends when the source says so: one past the last frame, it sends an item
that carries nothing but the end. Every stage takes it in the place of a frame, is told so by `finish`, sees its older
frames through, takes from its edges what later frames would have read, and hands the end on.

*A program starts at any slot boundary.* The units of slots before it count as done, on all stages: what they gave and
did not take is what a session has to hold to go on from there (`token_game.items_across` lists the items).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import ClassVar

from paceline.pipeline.context import Context, slot_of
from paceline.pipeline.stage import StageKind
from paceline.pipeline.topology import ContextMode, EdgeSpec, FrameTopology, WorldEdgeSpec
from paceline.pipeline.unit import Give, Key, ModelShape, Row, Unit, UnitKind, kv_part

__all__ = ["Give", "ModelShape", "Program", "RelayProgram", "Row", "SourceProgram", "Unit", "UnitKind", "kv_part"]


@dataclass(frozen=True, slots=True, eq=False)
class _Wiring:
    """Item edges by the stage that they lead into, and out of. Many programs are made of one topology, one after the
    other, so the last wiring is kept."""

    edges: tuple[EdgeSpec | WorldEdgeSpec, ...]
    inputs: Mapping[str, list[int]]
    outputs: Mapping[str, list[int]]
    _last: ClassVar[list[_Wiring]] = []

    @classmethod
    def of(cls, edges: tuple[EdgeSpec | WorldEdgeSpec, ...]) -> _Wiring:
        """The wiring of these edges."""
        for known in cls._last:
            if known.edges is edges:
                return known
        inputs: dict[str, list[int]] = {}
        outputs: dict[str, list[int]] = {}
        for index, edge in enumerate(edges):
            if edge.carries == "item":
                inputs.setdefault(edge.target, []).append(index)
                outputs.setdefault(edge.source, []).append(index)
        made = cls(edges, inputs, outputs)
        cls._last[:] = [made]
        return made


@dataclass(slots=True)
class Program:
    """One stream. Iterate `units()`. Before asking for the unit after one that took an item of a frame, call `finish`
    where the item was the end of the session, else, after a receive, `context.begin`."""

    topology: FrameTopology
    shape: ModelShape
    stage: str
    session: int
    end: int | None = field(init=False, default=None)
    """One past the last frame, once that is known"""
    context: Context = field(init=False)
    inputs: list[int] = field(init=False)
    """Item edges into this stage"""
    outputs: list[int] = field(init=False)
    """Item edges out of this stage"""

    def __post_init__(self) -> None:
        wiring = _Wiring.of(self.topology.edges)
        self.inputs, self.outputs = wiring.inputs.get(self.stage, []), wiring.outputs.get(self.stage, [])
        spec = self.topology.context
        self.context = Context.of(spec, self.topology.steps, self.prompt, None, self.shape.view)

    @property
    def prompt(self) -> int:
        """Prompt frames, which are given and not computed."""
        return self.topology.prompt_frames

    def units(self, start: int | None = None, stop: int | None = None) -> Iterator[Unit]:
        """The units of the stream, in order, for ever or until the session has ended.

        `start` is a slot boundary: units of earlier slots ran before, in another life of the session, and the frames
        that began at later steps there are in `context.first_steps`. Without it the session begins with its prompt.
        `stop` is one past the last frame, where that is known from the start.
        """
        raise NotImplementedError

    def finish(self, frame: int) -> None:
        """The session has ended: the item in the place of `frame` was its end."""
        self.end = frame

    @property
    def is_source(self) -> bool:
        """Whether the session begins and ends here."""
        return self.topology.stages[self.stage].kind is StageKind.source

    def ended(self, frame: int) -> bool:
        """Whether a frame is known to be beyond the end."""
        return self.end is not None and frame >= self.end

    def first_frame(self, start: int | None, step: int) -> int:
        """The first frame whose pass at a step is in slot `start` or later."""
        if start is None:
            return self.prompt
        if self.context.mode is ContextMode.clean:
            passes = self.context.steps + 1
            return max(self.prompt, -(-(start - step) // passes))
        return max(self.prompt, start - step)

    # -- wiring --------------------------------------------------------------------------------------------------------

    def kind_at(self, edge: int) -> StageKind:
        """What the stage at the far end of an edge is."""
        return self.topology.stages[self.topology.edges[edge].target].kind

    def slot(self, frame: int, step: int) -> int:
        """The slot of a pass in the lock-step schedule; priorities come from it."""
        return slot_of(self.topology.context.mode, self.topology.steps, frame, step)


class SourceProgram(Program):
    """Sends the prompt frames, then one condition a frame, then the end."""

    def units(self, start: int | None = None, stop: int | None = None) -> Iterator[Unit]:
        self.end = stop
        payload = self.topology.item_bytes
        for frame in count(0 if start is None else self.first_frame(start, 0)):
            # A prompt frame travels as tokens; an action is a few numbers.
            nbytes = self.shape.latent_bytes if frame < self.prompt else payload
            gives = tuple(Give(edge, frame, 0, nbytes) for edge in self.outputs)
            yield Unit(self.stage, self.session, UnitKind.emit, self.slot(frame, 0), frame, gives=gives)
            if self.ended(frame):
                return


class RelayProgram(Program):
    """Takes one item, gives one item: decoders, sleepers and the sink."""

    def units(self, start: int | None = None, stop: int | None = None) -> Iterator[Unit]:
        self.end = stop
        spec = self.topology.stages[self.stage]
        kind = {StageKind.decode: UnitKind.decode, StageKind.sleep: UnitKind.sleep}.get(spec.kind, UnitKind.show)
        nbytes = self.shape.frame_bytes if spec.kind is StageKind.decode else self.topology.item_bytes
        for frame in count(self.first_frame(start, self.context.steps)):
            takes = tuple(Key(edge, self.session, frame) for edge in self.inputs)
            gives = tuple(Give(edge, frame, 0, nbytes) for edge in self.outputs)
            slot = self.slot(frame, self.context.steps)
            yield Unit(self.stage, self.session, kind, slot, frame, takes=takes, gives=gives)
            if self.ended(frame):
                return
