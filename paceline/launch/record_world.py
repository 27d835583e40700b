"""Records what attention looks at while a world model makes frames."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from paceline.launch.workload import Recording
from paceline.pipeline.context import Context
from paceline.pipeline.stage import StageKind
from paceline.pipeline.tiers import TierSpec
from paceline.pipeline.topology import WorldTopology
from paceline.runtime.serial import run_serial
from paceline.runtime.spec import RunSpec
from paceline.stages.frame_tiers import frame_layout
from paceline.stages.frame_trace import FrameRecorder, FrameTrace
from paceline.stages.world_file import WorldHeader
from paceline.tiers.traces.format import TraceHeader, TraceWriter

__all__ = ["record_world"]


def record_world(topology: WorldTopology, out: Path, frames: int, sessions: int, seed: int) -> Recording:
    """Make frames as the serial reference does, session after session, and write the trace `out`. A step of it is one
    pass of the model. Raises `FileNotFoundError` for missing weights and `OSError`."""
    name, size = _blocks_of(topology)
    recorder: FrameRecorder | None = None
    files = ExitStack()

    def watch(session: int, context: Context, header: WorldHeader) -> FrameTrace:
        nonlocal recorder
        if recorder is None:
            layout = frame_layout(header, size)
            source = f"paceline trace record, seed {seed}"
            # Positions are frames: a block spans one.
            trace = TraceHeader(f"{topology.name}/{name}", 1, layout.block_nbytes, source)
            recorder = FrameRecorder(files.enter_context(TraceWriter(out, trace)), layout, header.tokens)
        return FrameTrace(recorder, session, context.sinks, context.lasting)

    with files, tempfile.TemporaryDirectory() as folder:
        run_serial(RunSpec(topology, frames, sessions, seed, serial=True), Path(folder), watch=watch)
    if recorder is None:
        raise ValueError(f"{topology.name} made no frames")
    return Recording(recorder.steps, recorder.most, out.stat().st_size)


def _blocks_of(topology: WorldTopology) -> tuple[str, int]:
    """The group that the trace is named after, and how many tokens a block has there."""
    groups = [stage.group for stage in topology.stages.values() if stage.kind is StageKind.denoise]
    for group in groups:
        if group in topology.tiers:
            return group, topology.tiers[group].block_size
    return groups[0], TierSpec(hbm=1).block_size
