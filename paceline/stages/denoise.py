"""The denoise stage: some steps of a causal world model, for every session on its rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from paceline.pipeline.context import Context, slot_of
from paceline.pipeline.program import Give, Program, Row, Unit, UnitKind
from paceline.pipeline.stage import StageKind
from paceline.pipeline.topology import ContextMode, FrameTopology
from paceline.stages.failed import failure_in, failure_text, with_failure
from paceline.stages.frame_cache import FrameCache
from paceline.stages.frame_sharing import SharedFrames
from paceline.stages.frame_tiers import FrameTiers
from paceline.stages.item import Item, Key, Meta
from paceline.stages.memory import make_memory
from paceline.stages.memory.frame_memory import FrameMemory, empty_read
from paceline.stages.passes import Pass, run_layers
from paceline.stages.world_model import AnyWorldModel, AnyWorldSession
from paceline.tiers.manager import TierManager

__all__ = ["DenoiseStage", "pass_times"]


def pass_times(times: Sequence[float], step: int, first_step: int) -> tuple[float, float]:
    """Times (t, r) of a pass, of the step times `(t_0, ..., t_S)`. A frame that skips steps takes one longer step from
    noise instead; the clean pass runs at (t_S, t_S)."""
    if step == len(times) - 1:
        return times[-1], times[-1]
    return times[0 if step == first_step else step], times[step + 1]


@dataclass(slots=True, eq=False)
class _Session:
    world: AnyWorldSession
    context: Context
    cache: FrameCache
    latents: dict[int, Tensor] = field(default_factory=dict)
    metas: dict[int, Meta] = field(default_factory=dict)
    memory: FrameMemory | None = None
    """The context memory, at the stage of the first step"""
    reads: dict[int, Tensor] = field(default_factory=dict)
    """By frame: what it read from the context memory"""
    running: dict[Row, Pass] = field(default_factory=dict)
    slot: int = -1
    """All slots before this one are over"""
    passed: bool = False
    """Whether a pass has ended in this slot"""
    failed: str | None = None
    """The mark that all its items carry from the failure on (see `failed.py`)"""


class DenoiseStage:
    """Runs the units of its streams; holds latents between its own steps and KV as long as some pass reads it."""

    def __init__(
        self,
        model: AnyWorldModel,
        topology: FrameTopology,
        stage: str,
        seed_of: dict[int, int],
        kv_hash: bool,
        tiers: TierManager | None = None,
        rank: int | None = None,
    ) -> None:
        """`tiers`: where KV that lasts lies; None for plain tensors. `rank` is what messages call this place."""
        self.model, self.topology, self.stage = model, topology, stage
        self.steps = topology.stage_steps(stage)
        self._seed_of = seed_of
        self._kv_hash = kv_hash
        self._rank = rank
        self.tiers = tiers
        self._shared = None if tiers is None else SharedFrames(tiers)
        self._times = model.header.step_times(topology.steps)
        self._layers = model.header.layers
        spec = topology.context.memory
        self._rule = None if spec is None else make_memory(spec.kind, spec.options)
        self._sessions: dict[int, _Session] = {}

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def sessions(self) -> list[int]:
        """Open sessions."""
        return list(self._sessions)

    def open(self, session: int, program: Program) -> None:
        """Make ready for a session."""
        context, tiers = program.context, None
        if self.tiers is not None:
            tokens, shared = self.model.header.tokens, self._shared
            tiers = FrameTiers(self.tiers, tokens, context.sinks, context.lasting, session, context.prompt, shared)
        cache = FrameCache(self.model, program.prompt if self._kv_hash else None, tiers)
        world = self.model.open(self._seed_of[session])
        state = self._sessions[session] = _Session(world, context, cache)
        if self._rule is not None and 0 in self.steps:
            state.memory = FrameMemory(self._rule, self.model, context.written)

    def close(self, session: int) -> None:
        """Free the session's state."""
        self._sessions.pop(session).cache.close()

    def digests(self, session: int) -> dict[int, str]:
        """SHA-256 by level of all KV computed here for a session; none of one that is known here to have failed."""
        return self._sessions[session].cache.digests()

    def memory(self, session: int) -> FrameMemory | None:
        """The context memory of a session, where it is here."""
        return self._sessions[session].memory

    def kv_bytes(self) -> int:
        """Bytes of KV held for all sessions."""
        return sum(state.cache.nbytes for state in self._sessions.values())

    @torch.inference_mode()
    def warm(self) -> None:
        """One pass on noise with an empty context."""
        cache = FrameCache(self.model)
        condition = self.model.dummy_condition()
        cache.place(0, condition)
        session = self.model.open(0)
        x, (t, r) = session.start_noise(0, condition), self._times[:2]
        read = None if self._rule is None else empty_read(self._rule, self.model, condition)
        p = Pass.start(self.model, session, cache, Row(0, 0), (), x, t, r, condition, memory=read)
        run_layers(self.model, [p], 0, self._layers)

    @torch.inference_mode()
    def run(self, units: Sequence[Unit], taken: Sequence[Sequence[Item]]) -> list[list[Item]]:
        """See `Stage.run`."""
        for unit, items in zip(units, taken, strict=True):
            self._advance(unit, unit.slot)
            self._take(unit, items)
        if units[0].kind is UnitKind.prefill:
            for unit in units:
                self._prefill(unit)
        elif units[0].kind is UnitKind.layers:
            self._run_layers(units)
        for unit in units:
            self._check(unit)
        given = [[self._item(unit, give) for give in unit.gives] for unit in units]
        ends_pass = bool(units[0].rows) and units[0].layers[1] == self._layers
        for unit in units:
            if ends_pass:
                self._sessions[unit.session].passed = True
            if self._ends_slot(unit):
                self._advance(unit, unit.slot + 1)
        if self.tiers is not None and ends_pass:
            self.tiers.step()
        return given

    # -- taking in -----------------------------------------------------------------------------------------------------

    def _take(self, unit: Unit, items: Sequence[Item]) -> None:
        state = self._sessions[unit.session]
        # All marks before anything else: what the unit computes may come from any of its items.
        for item in items:
            mark = failure_in(item.meta)
            if mark is not None:
                self._fail(state, mark)
        for item in items:
            frame, carries = item.key.position, self.topology.edges[item.key.edge].carries
            if carries == "kv":
                self._take_kv(state, item)
                continue
            if carries == "latent":
                self._remember(state, frame, item.tensors[0].to(self.device))
                continue
            state.metas[frame] = item.meta
            state.context.begin(frame, int(item.meta.get("first_step", 0)))
            condition = self.model.condition(item.meta)
            state.cache.place(frame, condition)
            self._observe(state, frame, condition)
            tensors = [tensor.to(self.device) for tensor in item.tensors]
            if self._rule is not None:
                state.reads[frame] = self._read(state, frame, condition, tensors)
            if tensors:
                state.latents[frame] = tensors[0]
            if frame < state.context.prompt:
                self._remember(state, frame, tensors[0])

    def _observe(self, state: _Session, frame: int, condition: Any) -> None:
        """What a frame recalls is known before its latent is computed on."""
        context = state.context
        if context.recall:
            for other in context.observe(frame, self.model.pose(condition)):
                for level in context.recallable:
                    state.cache.keep(other, level, max(self._slot(frame - 1, step) for step in self.steps))
        if context.first_step(frame) <= self.steps[-1]:  # else no pass of it is here, and nothing is read for it
            state.cache.prefetch(context.frames(frame))

    def _read(self, state: _Session, frame: int, condition: Any, tensors: list[Tensor]) -> Tensor:
        """What a frame reads from the context memory: read here, or taken from what came with the latent."""
        if self._rule is None:
            raise ValueError("the topology has no context memory")
        if frame < state.context.prompt:
            return empty_read(self._rule, self.model, condition)
        return tensors.pop() if state.memory is None else state.memory.read(frame, condition)

    def _remember(self, state: _Session, frame: int, latent: Tensor) -> None:
        """A frame is finished, or was given: it goes to the context memory, if that is here."""
        if state.memory is not None:
            state.memory.finished(frame, latent, self.model.condition(state.metas[frame]))

    def _take_kv(self, state: _Session, item: Item) -> None:
        level, first = divmod(item.key.part, self._layers)
        frame = item.key.position
        if first == 0:
            self._keep(state, frame, level)
        # One tensor, so that one transfer brings it: [layers, 2, H, N, D], keys then values.
        for offset, (k_HND, v_HND) in enumerate(item.tensors[0].to(self.device)):
            state.cache.put(frame, level, first + offset, k_HND, v_HND, own=False)

    def _keep(self, state: _Session, frame: int, level: int) -> None:
        if level in state.context.recallable:
            return  # until another frame takes its place: see `_observe`
        last = {step: state.context.last_reader(frame, level, step) for step in self.steps}
        # KV made here for others alone lives until it was sent, which is before its own pass is over.
        until = [self._slot(reader, step) for step, reader in last.items() if reader >= 0]
        state.cache.keep(frame, level, max(until, default=self._slot(frame, level)))

    # -- failing -------------------------------------------------------------------------------------------------------

    def _check(self, unit: Unit) -> None:
        """See whether the tiers failed a session in a unit that computed or read."""
        state = self._sessions[unit.session]
        cause = state.cache.cause
        if state.failed is None and cause is not None:
            self._fail(state, failure_text(self.stage, self._rank, unit.frame, state.context.prompt, cause))

    def _fail(self, state: _Session, mark: str) -> None:
        """Mark a session; the first mark stays."""
        if state.failed is None:
            state.failed = mark
            state.cache.fail()

    # -- computing -----------------------------------------------------------------------------------------------------

    def _start(self, state: _Session, row: Row) -> Pass:
        frame, steps = row.frame, self.topology.steps
        first = state.context.first_step(frame)
        t, r = pass_times(self._times, row.step, first)
        condition = self.model.condition(state.metas[frame])
        if frame >= state.context.prompt and row.step == first:
            state.latents[frame] = state.world.start_noise(frame, condition)
        self._keep(state, frame, row.step)
        reads, x = state.context.reads(frame, row.step), state.latents[frame]
        memory = state.reads.get(frame)
        return Pass.start(
            self.model, state.world, state.cache, row, reads, x, t, r, condition, row.step == steps, memory
        )

    def _run_layers(self, units: Sequence[Unit]) -> None:
        start, stop = units[0].layers
        passes: list[Pass] = []
        for unit in units:
            state = self._sessions[unit.session]
            for row in unit.rows:
                if start == 0:
                    state.running[row] = self._start(state, row)
                passes.append(state.running[row])
        run_layers(self.model, passes, start, stop)
        if stop == self._layers:
            for unit in units:
                self._finish(self._sessions[unit.session], unit.rows)

    def _prefill(self, unit: Unit) -> None:
        state = self._sessions[unit.session]
        p = self._start(state, unit.rows[0])
        run_layers(self.model, [p], 0, self._layers)

    def _finish(self, state: _Session, rows: tuple[Row, ...]) -> None:
        for row in rows:
            p = state.running.pop(row)
            if row.step < self.topology.steps:
                state.latents[row.frame] = p.step_to()
            if row.step == self.topology.steps - 1:
                self._remember(state, row.frame, state.latents[row.frame])

    def _ends_slot(self, unit: Unit) -> bool:
        """Whether the pass that ends here is the last of its slot: of the stage's steps the first comes last."""
        at_end = unit.kind is UnitKind.layers and unit.layers[1] == self._layers
        return at_end and unit.rows[-1].step == self.steps[0]

    def _advance(self, unit: Unit, slot: int) -> None:
        """Slots before `slot` are over: units come in their order, and a skipped pass is over with its slot. Drop what
        no later pass reads."""
        state = self._sessions[unit.session]
        if slot <= state.slot:
            return
        if self.tiers is not None and not state.passed:
            self.tiers.step()  # what other stages computed in the slot came in, though no pass ran here
        state.slot, state.passed = slot, False
        # The newest frame whose first step here is over; those behind it are at later steps, up to the clean pass.
        newest = self._last_of(slot - 1, self.steps[0])
        oldest = newest - self.topology.steps - 1
        state.cache.advance(slot, oldest - state.context.window, state.context.sinks)
        for held in (state.latents, state.metas, state.reads):
            for frame in [f for f in held if f < oldest]:
                del held[frame]

    def _last_of(self, slot: int, step: int) -> int:
        """The last frame whose pass at a step is in this slot or before it."""
        if self.topology.context.mode is ContextMode.clean:
            return (slot - step) // (self.topology.steps + 1)
        return slot - step

    def _slot(self, frame: int, step: int) -> int:
        return slot_of(self.topology.context.mode, self.topology.steps, frame, step)

    # -- giving --------------------------------------------------------------------------------------------------------

    def _item(self, unit: Unit, give: Give) -> Item:
        state = self._sessions[unit.session]
        key = Key(give.edge, unit.session, give.position, give.part)
        edge = self.topology.edges[give.edge]
        if edge.carries == "kv":
            level = give.part // self._layers
            kv = [state.cache.get(give.position, level, layer) for layer in range(*give.layers)]
            k_HND = kv[0][0]
            stacked = torch.stack([tensor for pair in kv for tensor in pair])
            # It may just have been lost.
            self._check(unit)
            return Item(key, (stacked.view(len(kv), 2, *k_HND.shape),), with_failure({}, state.failed))
        # A frame that skips all steps of this stage has no latent yet: it starts from noise further on.
        tensors = [] if unit.kind is UnitKind.drain else [state.latents[give.position]]
        if edge.carries == "latent":
            return Item(key, tuple(tensors), with_failure({}, state.failed))
        target = self.topology.stages[edge.target].kind
        if self._rule is not None and give.position >= state.context.prompt and target is StageKind.denoise:
            tensors.append(state.reads[give.position])
        return Item(key, tuple(tensors), with_failure(state.metas[give.position], state.failed))
