"""One generation, as it is handed to every rank."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from paceline.kernels.philox import session_seed
from paceline.pipeline.topology import Topology
from paceline.runtime.language.parked import ParkedSession
from paceline.stages.lm.tokenizer import Tokenizer
from paceline.stages.sampling_params import SamplingParams

__all__ = ["GenerateSpec", "Resumed"]


@dataclass(frozen=True, slots=True)
class Resumed:
    """A parked session and its folder."""

    folder: Path
    session: ParkedSession


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
    park: Path | None = None
    """Folder that sessions are written to when they end, with the KV of the verifiers."""
    resumed: tuple[Resumed, ...] = ()
    """Sessions that go on where they were parked; prompts are what follows. Without them, sessions are new."""

    def session_seed(self, session: int) -> int:
        """The seed of one session."""
        return self.resumed[session].session.seed if self.resumed else session_seed(self.seed, session)

    def begin(self, session: int, tokenizer: Tokenizer) -> list[int]:
        """The tokens that a session begins with."""
        prompt = self.prompts[session]
        if not self.resumed:
            return tokenizer.encode(prompt)
        tokens = self.resumed[session].session.tokens
        return [*tokens, *tokenizer.encode_more(prompt)]

    def cut(self, session: int) -> bool:
        """Whether the tokens that it begins with may end within a character: those of a parked session may."""
        return bool(self.resumed) and not self.prompts[session]

    def number(self, session: int) -> int:
        """Its number in a folder of parked sessions, which a resumed one keeps."""
        return self.resumed[session].session.number if self.resumed else session

    def held(self, session: int) -> int:
        """Positions of a session whose KV is parked."""
        return len(self.resumed[session].session.tokens) - 1 if self.resumed else 0
