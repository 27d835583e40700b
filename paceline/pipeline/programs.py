"""Which program a stage of a topology runs."""

from __future__ import annotations

from paceline.pipeline.denoise_program import DenoiseProgram
from paceline.pipeline.program import ModelShape, Program, RelayProgram, SourceProgram
from paceline.pipeline.stage import StageKind
from paceline.pipeline.topology import FrameTopology

__all__ = ["program_for"]


def program_for(topology: FrameTopology, shape: ModelShape, stage: str, session: int) -> Program:
    """The program of a stage for a session."""
    match topology.stages[stage].kind:
        case StageKind.source:
            return SourceProgram(topology, shape, stage, session)
        case StageKind.denoise:
            return DenoiseProgram(topology, shape, stage, session)
    return RelayProgram(topology, shape, stage, session)
