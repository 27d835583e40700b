"""One generation, as it is handed to every rank."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from paceline.kernels.philox import session_seed
from paceline.pipeline.topology import Topology
from paceline.stages.sampling import SamplingParams

__all__ = ["GenerateSpec"]


@dataclass(frozen=True, slots=True)
class GenerateSpec:
    """What to generate. The same spec gives the same text however it is launched."""

    topology: Topology
    prompts: tuple[str, ...]
    max_tokens: int
    """Most new tokens of a session."""
    seed: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    plain: bool = False
    """Decode without the drafter."""
    serial: bool = False
    """Plain decoding in one process, one session after the other: the reference."""
    out: Path | None = None
    """Folder for what is collected; workers don't know it."""

    def session_seed(self, session: int) -> int:
        """The seed of one session."""
        return session_seed(self.seed, session)
