"""The program of a denoise stage: its passes in lock-step order, and what has to come and to go with each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, count

from paceline.pipeline.kv_receive_plan import KVReceivePlan
from paceline.pipeline.program import Program
from paceline.pipeline.stage import StageKind
from paceline.pipeline.topology import ContextMode, Schedule
from paceline.pipeline.unit import Give, Key, Row, Unit, UnitKind, kv_part, kv_run

__all__ = ["DenoiseProgram"]


@dataclass(slots=True)
class DenoiseProgram(Program):
    """The passes of one stage in lock-step order: in each slot the oldest frame first, because younger ones read it."""

    steps: tuple[int, ...] = field(init=False)
    intake: KVReceivePlan = field(init=False)
    consumers: list[tuple[int, tuple[int, ...]]] = field(init=False, default_factory=list)
    """KV edges out of this stage, with the steps that read there"""
    latents_out: int | None = field(init=False, default=None)
    """The edge by which finished latents leave for the stage of the context memory"""
    latents_in: int | None = field(init=False, default=None)
    """The edge by which they come, where the context memory is here"""
    taken: int = field(init=False, default=0)
    """One past the last frame that came in"""

    def __post_init__(self) -> None:
        Program.__post_init__(self)
        self.steps = self.topology.stage_steps(self.stage)
        self.intake = KVReceivePlan(self.topology, self.shape, self.stage, self.session, self.context)
        for index, edge in enumerate(self.topology.edges):
            if edge.carries == "kv" and edge.source == self.stage:
                self.consumers.append((index, self.topology.stage_steps(edge.target)))
            if edge.carries == "latent" and edge.source == self.stage:
                self.latents_out = index
            if edge.carries == "latent" and edge.target == self.stage:
                self.latents_in = index

    @property
    def joint(self) -> bool:
        """Whether all rows of a slot run as one forward."""
        return self.topology.schedule is Schedule.batched

    def units(self, start: int | None = None, stop: int | None = None) -> Iterator[Unit]:
        self.end = self.intake.end = stop
        if start is None:
            for frame in range(self.prompt):
                yield self._prefill(frame)
        # What came in before decides what comes in now, and is told by the slots just before.
        before = self.first_frame(start, self.steps[0]) - self.context.reach - self.context.steps - 3
        self.taken = max(before, self.prompt)
        if not any(self._runs(step) for step in self.steps):
            return
        for slot in count(self.slot(self.taken, self.steps[0])):
            passes = self._joint(slot) if self.joint else self._one_by_one(slot)
            units = chain(self._finished(slot), passes)
            if start is None or slot >= start:
                yield from units
            else:
                for _ in units:
                    pass
            if self.end is not None and slot >= self._last_slot(self.end):
                yield from self._discard(self.slot(self.end, self.context.steps), self._rest(slot, self.end))
                return

    def finish(self, frame: int) -> None:
        self.end = self.intake.end = frame

    # -- order ---------------------------------------------------------------------------------------------------------

    def _joint(self, slot: int) -> Iterator[Unit]:
        """The units of a slot whose passes are one forward."""
        passes = self._passes(slot)
        for row in passes:
            yield from self._come(row.frame)
        rows = tuple(
            row for row in passes if not self.ended(row.frame) and row.step >= self.context.first_step(row.frame)
        )
        if rows:
            yield self._whole(slot, rows)
        for row in passes:
            if self.ended(row.frame):
                yield from self._past(slot, row)

    def _one_by_one(self, slot: int) -> Iterator[Unit]:
        """The units of a slot, pass by pass."""
        for row in self._passes(slot):
            yield from self._come(row.frame)
            if self.ended(row.frame):
                yield from self._past(slot, row)
                continue
            first = self.context.first_step(row.frame)
            if row.step < first:
                yield from self._skip(slot, row, first)
            else:
                yield from self._pass(slot, row)

    def _come(self, frame: int) -> Iterator[Unit]:
        """A frame comes in with the first pass of it that this stage has, and after the end none comes."""
        while self.taken <= frame and (self.end is None or self.taken <= self.end):
            self.taken += 1
            yield self._receive(self.taken - 1)

    def _last_slot(self, end: int) -> int:
        """The slot in which a stage is done with a session of frames before `end`."""
        handed_on = self.steps[0] if self._last_step is None else self._last_step
        return max(self.slot(end - 1, self.steps[-1]), self.slot(end, handed_on))

    @property
    def _last_step(self) -> int | None:
        """The step after which a latent leaves the stage; None where it has the clean pass alone."""
        return max((step for step in self.steps if step < self.context.steps), default=None)

    def _runs(self, step: int) -> bool:
        # In matched mode nobody reads the finished frame, so it has no clean pass.
        return not (step == self.topology.steps and self.context.mode is ContextMode.matched)

    def _passes(self, slot: int) -> list[Row]:
        """The passes of a slot, as if the session had no end."""
        steps = self.topology.steps
        rows = []
        for step in reversed(self.steps):
            if self.context.mode is ContextMode.clean:
                frame, offset = divmod(slot, steps + 1)
                fits = offset == step
            else:
                frame, fits = slot - step, True
            if fits and self.prompt <= frame and self._runs(step):
                rows.append(Row(frame, step))
        return rows

    # -- units ---------------------------------------------------------------------------------------------------------

    def _latent_gives(self, frame: int, prompt: bool) -> tuple[Give, ...]:
        """The latent goes on to the next denoise stages, and from the last step to the decoder."""
        nbytes = self.shape.latent_bytes
        read = 0 if prompt or self.topology.context.memory is None else self.shape.memory_bytes
        gives = [
            Give(edge, frame, 0, nbytes + read * (self.kind_at(edge) is StageKind.denoise))
            for edge in self.outputs
            if self._wants(edge, prompt)
        ]
        if self.latents_out is not None and not prompt and not self.ended(frame):
            gives.append(Give(self.latents_out, frame, 0, nbytes))
        return tuple(gives)

    def _wants(self, edge: int, prompt: bool) -> bool:
        """Whether the stage at the far end takes a latent; one that has no pass in this mode takes prompts alone."""
        target = self.topology.edges[edge].target
        if self.kind_at(edge) is not StageKind.denoise:
            return not prompt
        return prompt or any(self._runs(step) for step in self.topology.stage_steps(target))

    def _prefill(self, frame: int) -> Unit:
        takes = tuple(Key(edge, self.session, frame) for edge in self.inputs)
        row = Row(frame, self.topology.steps)
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

    def _finished(self, slot: int) -> Iterator[Unit]:
        """Take the latent that was finished in the slot before the last one, ahead of the passes of this slot: then two
        credits are enough, and no pass waits for another stage. It is written to the context memory later
        (`Context.written`)."""
        frame = self._finished_by(slot)
        if self.latents_in is not None and self.prompt <= frame != self._finished_by(slot - 1):
            yield from () if self.ended(frame) else self._drain(slot, [Key(self.latents_in, self.session, frame)])

    def _finished_by(self, slot: int) -> int:
        """The last frame whose finished latent has been taken in a slot. In mode `clean`, where frames follow one
        another, a latent is taken with the next frame."""
        if self.context.mode is ContextMode.clean:
            return slot // (self.topology.steps + 1) - 1
        return slot - self.topology.steps - 1

    def _rest(self, slot: int, end: int) -> list[Key]:
        """What is still to be taken after a session's last slot, in the order of its making: KV, and finished
        latents."""
        kv = self.intake.rest(end)
        if self.latents_in is None:
            return kv
        oldest = max(self._finished_by(slot) + 1, self.prompt)
        latents = [Key(self.latents_in, self.session, frame) for frame in range(oldest, end)]
        # A latent is finished with the last unit of its slot. Sorting is stable, so KV stays in its order.
        level = self.topology.steps - 1
        slots = {key: self.slot(key.position, key.part // self.shape.layers) for key in kv}
        slots |= {key: self.slot(key.position, level) for key in latents}
        return sorted([*kv, *latents], key=slots.__getitem__)

    def _skip(self, slot: int, row: Row, first: int) -> Iterator[Unit]:
        yield from self._drain(slot, self.intake.skip(slot, row))
        # The frame is handed on where this stage's last step is among those that it skips.
        last = self._last_step
        gives = self._latent_gives(row.frame, prompt=False) if row.step == last and last < first else ()
        if gives:
            yield Unit(self.stage, self.session, UnitKind.drain, slot, row.frame, gives=gives)

    def _past(self, slot: int, row: Row) -> Iterator[Unit]:
        """In place of a pass beyond the end: what it would have read first is taken, so that who sends it gets its
        credit back, and where a latent would leave the stage the end does."""
        yield from self._discard(slot, self.intake.skip(slot, row))
        if row.frame == self.end and row.step == self._last_step:
            gives = self._latent_gives(row.frame, prompt=False)
            yield Unit(self.stage, self.session, UnitKind.end, slot, row.frame, gives=gives)

    def _discard(self, slot: int, keys: list[Key]) -> Iterator[Unit]:
        return self._drain(slot, keys, UnitKind.discard)

    def _drain(self, slot: int, keys: list[Key], kind: UnitKind = UnitKind.drain) -> Iterator[Unit]:
        """One unit for each item, as no edge need have credit for two of them."""
        for key in keys:
            yield Unit(self.stage, self.session, kind, slot, key.position, takes=(key,))

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
        return row.step == self._last_step

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
