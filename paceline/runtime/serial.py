"""The serial reference: the same topology in one process, one item at a time.

Written as plain loops over frames and steps, apart from the programs, dispatchers and channels that it is the reference
for; it shares with them only what a pass computes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from paceline.pipeline.context import Context
from paceline.pipeline.program import Row
from paceline.pipeline.stage import StageKind
from paceline.pipeline.topology import ContextMode, Topology
from paceline.runtime.journal import Journal
from paceline.runtime.lanes import own_device
from paceline.runtime.result import Decision, RankReport, RunResult, memory_use, merge, peak_rss_bytes
from paceline.runtime.session import Session, span_of
from paceline.runtime.spec import RunSpec
from paceline.runtime.timeline import Timeline, now
from paceline.stages.denoise import pass_times
from paceline.stages.failed import failure_text
from paceline.stages.finite import NotFinite, is_finite
from paceline.stages.frame_cache import FrameCache
from paceline.stages.frame_trace import FrameTrace
from paceline.stages.item import Meta
from paceline.stages.memory import make_memory
from paceline.stages.memory.frame_memory import FrameMemory, empty_read
from paceline.stages.passes import Pass, run_layers
from paceline.stages.relay import spend
from paceline.stages.world_file import WorldHeader, world_of
from paceline.stages.world_model import AnyWorldModel, FrameDecoder

__all__ = ["run_serial"]

Progress = Callable[[int], None]
Watch = Callable[[int, Context, WorldHeader], FrameTrace]


class _Recorder:
    """Notes what the one rank computes."""

    def __init__(self, spec: RunSpec, run_dir: Path) -> None:
        self._owner = {
            step: name
            for name, stage in spec.topology.stages.items()
            if stage.kind is StageKind.denoise
            for step in spec.topology.stage_steps(name)
        }
        self.timeline = Timeline(0, run_dir if spec.out is not None else None)

    def add(self, stage: str | None, session: int, kind: str, frame: int, step: int, start_s: float) -> None:
        name = stage if stage is not None else self._owner.get(step, next(iter(self._owner.values())))
        end_s = now()
        self.timeline.busy_s += end_s - start_s
        self.timeline.note(name, session, kind, [(frame, step)], 0, start_s, end_s)


def _wait_until(when_s: float | None) -> None:
    if when_s is not None:
        time.sleep(max(0.0, when_s - now()))


@torch.inference_mode()
def _world_session(
    spec: RunSpec,
    session: Session,
    model: AnyWorldModel,
    decoder: FrameDecoder,
    recorder: _Recorder,
    progress: Progress,
    watch: Watch | None,
) -> tuple[dict[int, str], FrameMemory | None]:
    topology = spec.topology
    mode, steps = topology.context.mode, topology.steps
    prompt = topology.context.prompt
    end = prompt + spec.frames
    header = model.header
    times = header.step_times(steps)
    context = Context.of(topology.context, steps, prompt, end, header.view)
    watcher = None if watch is None else watch(session.id, context, header)
    cache = FrameCache(model, prompt if spec.kv_hash else None, watcher)
    latents: dict[int, torch.Tensor] = {}
    metas: dict[int, Meta] = {}
    world = model.open(session.seed)
    decoder.open(session.id)
    spec_of_memory, memory = topology.context.memory, None
    reads: dict[int, torch.Tensor] = {}
    if spec_of_memory is not None:
        rule = make_memory(spec_of_memory.kind, spec_of_memory.options)
        memory = FrameMemory(rule, model, context.written)
    decode = next((name for name, stage in topology.stages.items() if stage.kind is StageKind.decode), "decode")

    # One diagonal after another, oldest frame first; in mode `clean` a diagonal is a single pass.
    stride = steps + 1 if mode is ContextMode.clean else 1

    def begin(frame: int) -> None:
        _wait_until(session.pacer.emit_at(frame - prompt) if frame >= prompt else None)
        tensors, metas[frame] = session.emit(frame)
        context.begin(frame, int(metas[frame].get("first_step", 0)))
        condition = model.condition(metas[frame])
        cache.place(frame, condition)
        if context.recall:
            for other in context.observe(frame, model.pose(condition)):
                for level in context.recallable:
                    cache.keep(other, level, (frame - 1) * stride + steps)
        latents[frame] = tensors[0].to(model.device) if tensors else world.start_noise(frame, condition)
        if memory is not None and frame < prompt:
            memory.finished(frame, latents[frame], condition)
            reads[frame] = empty_read(rule, model, condition)
        elif memory is not None:
            reads[frame] = memory.read(frame, condition)

    def run(frame: int, step: int) -> None:
        started = now()
        first = context.first_step(frame)
        t, r = pass_times(times, step, first)
        row, seen = Row(frame, step), context.reads(frame, step)
        clean = step == steps
        condition = model.condition(metas[frame])
        p = Pass.start(model, world, cache, row, seen, latents[frame], t, r, condition, clean, reads.get(frame))
        run_layers(model, [p], 0, header.layers)
        if not clean:
            latents[frame] = p.step_to()
        if frame >= topology.context.sinks and step not in context.recallable:
            cache.keep(frame, step, (frame + steps + topology.context.window + 2) * stride)
        recorder.add(None, session.id, "prefill" if frame < prompt else "layers", frame, step, started)
        if step == steps - 1:
            started = now()
            if memory is not None:
                memory.finished(frame, latents[frame], condition)
            pictures = decoder.decode(session.id, frame - prompt, latents[frame])
            recorder.add(decode, session.id, "decode", frame, -1, started)
            if not is_finite(latents[frame]):
                session.fail(failure_text(decode, None, frame, prompt, NotFinite("the frame holds")))
            session.show(frame, pictures)
            progress(1)

    for frame in range(prompt):
        begin(frame)
        run(frame, steps)
    last_step = steps - 1 if mode is ContextMode.matched else steps
    begun = prompt
    for slot in range(prompt * stride, (end - 1) * stride + last_step + 1):
        for step in range(last_step, -1, -1):
            frame, exact = divmod(slot - step, stride)
            if exact or not prompt <= frame < end:
                continue
            if frame == begun:
                begin(frame)
                begun += 1
            if step >= context.first_step(frame):
                run(frame, step)
        oldest = slot // stride - steps - topology.context.window - 1
        cache.advance(slot + 1, oldest, topology.context.sinks)
        latents.pop(oldest, None)
        metas.pop(oldest, None)
        reads.pop(oldest, None)
    digests = cache.digests()
    cache.close()
    decoder.close(session.id)
    return digests, memory


def _sleep_session(spec: RunSpec, session: Session, recorder: _Recorder, progress: Progress) -> None:
    topology = spec.topology
    follow = {edge.source: edge.target for edge in topology.edges}
    name = topology.stage_of(StageKind.source)
    chain = []
    while name in follow:
        name = follow[name]
        if topology.stages[name].kind is StageKind.sleep:
            chain.append(name)
    for frame in range(spec.frames):
        _wait_until(session.pacer.emit_at(frame))
        (tensor,), _ = session.emit(frame)
        for name in chain:
            started = now()
            spend(topology.stages[name].ms, time.perf_counter())
            tensor = tensor + 1
            recorder.add(name, session.id, "sleep", frame, -1, started)
        session.show(frame, tensor)
        progress(1)


def serial_threads(topology: Topology) -> int:
    """Threads of the serial run: those of the groups that compute, since bits depend on the thread count."""
    kinds = (StageKind.denoise, StageKind.sleep)
    groups = [topology.groups[s.group] for s in topology.stages.values() if s.kind in kinds]
    return max(group.threads for group in groups)


def serial_device(topology: Topology) -> str:
    """The device of the serial run: that of the group of the first denoise stage, as its rank sees it."""
    groups = [topology.groups[s.group] for s in topology.stages.values() if s.kind is StageKind.denoise]
    return own_device(groups[0].device) if groups else "cpu"


def run_serial(
    spec: RunSpec,
    run_dir: Path,
    progress: Progress | None = None,
    decisions: list[Decision] | None = None,
    watch: Watch | None = None,
) -> RunResult:
    """Run all sessions, one after the other, in this process. `watch` makes what is to see a session's attention.
    Raises `FileNotFoundError` for missing weights."""
    topology = spec.topology
    shown = 0

    def tell(more: int) -> None:
        nonlocal shown
        shown += more
        if progress is not None:
            progress(shown)

    threads = serial_threads(topology)
    torch.set_num_threads(threads)
    device = serial_device(topology)
    model: AnyWorldModel | None = None
    decoder: FrameDecoder | None = None
    if topology.workload == "world":
        world = world_of(topology.model.weights)
        model, decoder = world.load(device), world.decoder(device)
    journal = Journal.of_run(spec, run_dir)
    sessions = [Session(spec, index, run_dir, decisions, journal.add) for index in range(spec.sessions)]
    recorder = _Recorder(spec, run_dir)
    digests: dict[str, str] = {}
    memories: list[FrameMemory] = []
    started = now()
    for session in sessions:
        if model is None or decoder is None:
            _sleep_session(spec, session, recorder, tell)
        else:
            levels, memory = _world_session(spec, session, model, decoder, recorder, tell, watch)
            memories += [] if memory is None else [memory]
            digests |= {f"{session.id}/{level}": value for level, value in levels.items()}
        session.close()
    wall = now() - started
    journal.close()
    timeline = recorder.timeline
    timeline.close()
    report = RankReport(
        rank=0,
        group="serial",
        host=os.uname().nodename,
        pid=os.getpid(),
        device=device,
        threads=threads,
        stages=list(topology.stages),
        busy_s=timeline.busy_s,
        wall_s=wall,
        stage_ms=timeline.passes.medians_ms(),
        peak_rss_bytes=peak_rss_bytes(),
        sessions=[session.result() for session in sessions],
        edges=[],
        kv_sha256=digests,
        memory=memory_use(memories),
        span_s=span_of(sessions),
        unsaved=[*journal.unsaved, *(file for session in sessions for file in session.unsaved)],
    )
    return merge([report])
