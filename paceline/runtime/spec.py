"""One run, as it is handed to every rank: the topology and what the command line asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paceline.pipeline.topology import FrameTopology

__all__ = ["RunSpec"]


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What to run. The same spec gives the same frames however it is launched."""

    topology: FrameTopology
    frames: int
    sessions: int
    seed: int
    serial: bool = False
    out: Path | None = None
    replay: Path | None = None
    """A journal whose decisions (fewer steps, ...) are taken again instead of made anew."""
    kv_hash: bool = False
    """Hash all KV that is computed (costs a little time), for comparing runs bit for bit."""

    @property
    def end(self) -> int:
        """One past the last frame of a session, its prompt counted."""
        return self.frames + self.topology.prompt_frames
