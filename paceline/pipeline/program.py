"""The dataflow program: the units of compute of every stage and session, in order, with what each takes and gives.

One description for all who need it: the worker runs the units with real time, the simulator with virtual time, and the
liveness check plays them as a token game. A *stream* is one stage's units for one session; units of a stream run in
order, and a unit may run once all it takes has arrived and there is credit for all it gives. Nothing here knows how
long a unit lasts, so nothing here can make the output depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from paceline.pipeline.context import Context, slot_of
from paceline.pipeline.intake import Intake
from paceline.pipeline.key import Key
from paceline.pipeline.topology import ContextMode, EdgeSpec, Schedule, StageKind, Topology
from paceline.pipeline.unit import Give, ModelShape, Row, Unit, UnitKind, kv_part, kv_run

__all__ = ["Give", "ModelShape", "Program", "Row", "Unit", "UnitKind", "kv_part", "program_for"]


@dataclass(frozen=True, slots=True, eq=False)
class _Wiring:
    """Item edges by the stage that they lead into, and out of. Many programs are made of one topology, one after the
    other, so the last wiring is kept."""

    edges: tuple[EdgeSpec, ...]
    inputs: Mapping[str, list[int]]
    outputs: Mapping[str, list[int]]
    _last: ClassVar[list[_Wiring]] = []

    @classmethod
    def of(cls, edges: tuple[EdgeSpec, ...]) -> _Wiring:
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
    """One stream. Iterate `units()`; call `context.begin` for a frame before asking for the unit after its receive."""

    topology: Topology
    shape: ModelShape
    stage: str
    session: int
    end: int
    context: Context = field(init=False)
    inputs: list[int] = field(init=False)
    """Item edges into this stage"""
    outputs: list[int] = field(init=False)
    """Item edges out of this stage"""

    def __post_init__(self) -> None:
        wiring = _Wiring.of(self.topology.edges)
        self.inputs, self.outputs = wiring.inputs.get(self.stage, []), wiring.outputs.get(self.stage, [])
        spec = self.topology.context
        self.context = Context.of(spec, self.topology.model.steps, self.prompt, self.end, self.shape.view)

    @property
    def prompt(self) -> int:
        """Prompt frames, which are given and not computed."""
        return self.topology.context.prompt if self.topology.workload == "world" else 0

    def units(self) -> Iterator[Unit]:
        """All units of the stream, in order."""
        raise NotImplementedError

    # -- wiring --------------------------------------------------------------------------------------------------------

    def kind_at(self, edge: int) -> StageKind:
        """What the stage at the far end of an edge is."""
        return self.topology.stages[self.topology.edges[edge].target].kind

    def slot(self, frame: int, step: int) -> int:
        """The slot of a pass in the lock-step schedule; priorities come from it."""
        return slot_of(self.topology.context.mode, self.topology.model.steps, frame, step)


class SourceProgram(Program):
    """Sends the prompt frames, then one condition a frame."""

    def units(self) -> Iterator[Unit]:
        payload = self.topology.item_bytes if self.topology.workload == "sleep" else 0
        for frame in range(self.end):
            # A prompt frame travels as tokens; an action is a few numbers.
            nbytes = self.shape.latent_bytes if frame < self.prompt else payload
            gives = tuple(Give(edge, frame, 0, nbytes) for edge in self.outputs)
            yield Unit(self.stage, self.session, UnitKind.emit, self.slot(frame, 0), frame, gives=gives)


class RelayProgram(Program):
    """Takes one item, gives one item: decoders, sleepers and the sink."""

    def units(self) -> Iterator[Unit]:
        spec = self.topology.stages[self.stage]
        kind = {StageKind.decode: UnitKind.decode, StageKind.sleep: UnitKind.sleep}.get(spec.kind, UnitKind.show)
        nbytes = self.shape.frame_bytes if spec.kind is StageKind.decode else self.topology.item_bytes
        for frame in range(self.prompt, self.end):
            takes = tuple(Key(edge, self.session, frame) for edge in self.inputs)
            gives = tuple(Give(edge, frame, 0, nbytes) for edge in self.outputs)
            slot = self.slot(frame, self.topology.model.steps)
            yield Unit(self.stage, self.session, kind, slot, frame, takes=takes, gives=gives)


@dataclass(slots=True)
class DenoiseProgram(Program):
    """The passes of one stage in lock-step order: in each slot the oldest frame first, because younger ones read it."""

    steps: tuple[int, ...] = field(init=False)
    intake: Intake = field(init=False)
    consumers: list[tuple[int, tuple[int, ...]]] = field(init=False, default_factory=list)
    """KV edges out of this stage, with the steps that read there"""

    def __post_init__(self) -> None:
        Program.__post_init__(self)
        self.steps = self.topology.stage_steps(self.stage)
        self.intake = Intake(self.topology, self.shape, self.stage, self.session, self.context)
        for index, edge in enumerate(self.topology.edges):
            if edge.carries == "kv" and edge.source == self.stage:
                self.consumers.append((index, self.topology.stage_steps(edge.target)))

    @property
    def joint(self) -> bool:
        """Whether all rows of a slot run as one forward."""
        return self.topology.schedule is Schedule.batched

    def units(self) -> Iterator[Unit]:
        for frame in range(self.prompt):
            yield self._prefill(frame)
        taken = self.prompt
        for slot in self._slots():
            passes = self._passes(slot)
            if self.joint:
                while taken < self.end and any(row.frame >= taken for row in passes):
                    yield self._receive(taken)
                    taken += 1
                rows = tuple(row for row in passes if row.step >= self.context.first_step(row.frame))
                if rows:
                    yield self._whole(slot, rows)
                continue
            for row in passes:
                # The frame comes in with the first pass of it that this stage has.
                if row.frame >= taken:
                    yield self._receive(row.frame)
                    taken = row.frame + 1
                first = self.context.first_step(row.frame)
                if row.step < first:
                    yield from self._skip(slot, row, first)
                else:
                    yield from self._pass(slot, row)
        yield from self._drain(self.slot(self.end, self.topology.model.steps), self.intake.rest())

    # -- order ---------------------------------------------------------------------------------------------------------

    def _slots(self) -> range:
        if not any(self._runs(step) for step in self.steps):
            return range(0)
        return range(self.slot(self.prompt, self.steps[0]), self.slot(self.end - 1, self.steps[-1]) + 1)

    def _runs(self, step: int) -> bool:
        # In matched mode nobody reads the finished frame, so it has no clean pass.
        return not (step == self.topology.model.steps and self.context.mode is ContextMode.matched)

    def _passes(self, slot: int) -> list[Row]:
        steps = self.topology.model.steps
        rows = []
        for step in reversed(self.steps):
            if self.context.mode is ContextMode.clean:
                frame, offset = divmod(slot, steps + 1)
                fits = offset == step
            else:
                frame, fits = slot - step, True
            if fits and self.prompt <= frame < self.end and self._runs(step):
                rows.append(Row(frame, step))
        return rows

    # -- units ---------------------------------------------------------------------------------------------------------

    def _latent_gives(self, frame: int, prompt: bool) -> tuple[Give, ...]:
        """The latent goes on to the next denoise stages, and from the last step to the decoder."""
        nbytes = self.shape.latent_bytes
        return tuple(Give(edge, frame, 0, nbytes) for edge in self.outputs if self._wants(edge, prompt))

    def _wants(self, edge: int, prompt: bool) -> bool:
        """Whether the stage at the far end takes a latent; one that has no pass in this mode takes prompts alone."""
        target = self.topology.edges[edge].target
        if self.kind_at(edge) is not StageKind.denoise:
            return not prompt
        return prompt or any(self._runs(step) for step in self.topology.stage_steps(target))

    def _prefill(self, frame: int) -> Unit:
        takes = tuple(Key(edge, self.session, frame) for edge in self.inputs)
        row = Row(frame, self.topology.model.steps)
        return Unit(
            self.stage,
            self.session,
            UnitKind.prefill,
            self.slot(frame, 0),
            frame,
            (row,),
            (0, self.shape.layers),
            takes,
            self._latent_gives(frame, prompt=True),
        )

    def _receive(self, frame: int) -> Unit:
        takes = tuple(Key(edge, self.session, frame) for edge in self.inputs)
        slot = self.slot(frame, self.steps[0])
        return Unit(self.stage, self.session, UnitKind.receive, slot, frame, takes=takes)

    def _skip(self, slot: int, row: Row, first: int) -> Iterator[Unit]:
        yield from self._drain(slot, self.intake.skip(slot, row))
        # The frame is handed on where this stage's last step is among those that it skips.
        last = max((step for step in self.steps if step < self.topology.model.steps), default=-1)
        gives = self._latent_gives(row.frame, prompt=False) if row.step == last and last < first else ()
        if gives:
            yield Unit(self.stage, self.session, UnitKind.drain, slot, row.frame, gives=gives)

    def _drain(self, slot: int, keys: list[Key]) -> Iterator[Unit]:
        """One unit for each item, as no edge need have credit for two of them."""
        for key in keys:
            yield Unit(self.stage, self.session, UnitKind.drain, slot, key.position, takes=(key,))

    def _whole(self, slot: int, rows: tuple[Row, ...]) -> Unit:
        gives = tuple(
            give for row in rows if self._is_last_step(row) for give in self._latent_gives(row.frame, prompt=False)
        )
        layers = (0, self.shape.layers)
        return Unit(self.stage, self.session, UnitKind.layers, slot, rows[0].frame, rows, layers, (), gives)

    def _pass(self, slot: int, row: Row) -> Iterator[Unit]:
        ahead, takes = self.intake.take(slot, row)
        yield from self._drain(slot, ahead)
        gives = self._kv_gives(row)
        last = self.shape.layers - 1
        if self._is_last_step(row):
            gives.setdefault(last, []).extend(self._latent_gives(row.frame, prompt=False))
        # A unit ends where something leaves and starts where something must have come.
        starts = sorted({0, *takes, *(layer + 1 for layer in gives if layer < last)})
        for start, stop in zip(starts, [*starts[1:], self.shape.layers], strict=True):
            yield Unit(
                self.stage,
                self.session,
                UnitKind.layers,
                slot,
                row.frame,
                (row,),
                (start, stop),
                tuple(takes.get(start, ())),
                tuple(gives.get(stop - 1, ())),
            )

    def _is_last_step(self, row: Row) -> bool:
        """Whether the latent leaves the stage after this pass."""
        steps = [step for step in self.steps if step < self.topology.model.steps]
        return bool(steps) and row.step == steps[-1]

    def _kv_gives(self, row: Row) -> dict[int, list[Give]]:
        """By last layer: the KV items that later passes elsewhere will read."""
        gives: dict[int, list[Give]] = {}
        for edge, steps in self.consumers:
            if not self.context.needed(row.frame, row.step, steps):
                continue
            stride = kv_run(self.topology, self.shape, edge, row.step)
            for layer in range(0, self.shape.layers, stride):
                stop = min(layer + stride, self.shape.layers)
                part = kv_part(row.step, layer, self.shape.layers)
                nbytes = self.shape.kv_layer_bytes * (stop - layer)
                gives.setdefault(stop - 1, []).append(Give(edge, row.frame, part, nbytes, (layer, stop)))
        return gives


def program_for(topology: Topology, shape: ModelShape, stage: str, session: int, frames: int) -> Program:
    """The program of a stage for a session of `frames` generated frames."""
    kind = topology.stages[stage].kind
    make: type[Program] = RelayProgram
    if kind is StageKind.source:
        make = SourceProgram
    elif kind is StageKind.denoise:
        make = DenoiseProgram
    prompt = topology.context.prompt if topology.workload == "world" else 0
    return make(topology, shape, stage, session, prompt + frames)
