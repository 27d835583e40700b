"""One run or generation, as it is handed to every rank: the topology and what the command line asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from paceline.pipeline.topology import FrameTopology, LanguageTopology
from paceline.runtime.language.parked import ParkedSession
from paceline.stages.sampling_params import SamplingParams

if TYPE_CHECKING:
    from paceline.stages.lm.tokenizer import Tokenizer

__all__ = ["GenerateSpec", "Resumed", "RunSpec", "SessionOptions"]


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


@dataclass(frozen=True, slots=True)
class Resumed:
    """A parked session and its folder."""

    folder: Path
    session: ParkedSession


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """What one session is generated with."""

    sampling: SamplingParams
    max_tokens: int
    stop: tuple[str, ...] = ()
    seed: int | None = None
    """The session's own seed; None: it follows from that of the run and the session's number."""


@dataclass(frozen=True, slots=True)
class GenerateSpec:
    """What to generate. The same spec gives the same text however it is launched."""

    topology: LanguageTopology
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
    """Folder for what is collected. With one, workers write down when they computed what."""
    park: Path | None = None
    """Folder that sessions are written to when they end, with the KV of the verifiers."""
    resumed: tuple[Resumed, ...] = ()
    """Sessions that go on where they were parked; prompts are what follows. Without them, sessions are new."""
    own: tuple[SessionOptions, ...] = ()
    """Options of each session, in the order of the prompts; without them, all have `sampling`, `max_tokens` and
    `stop`."""
    warnings: tuple[str, ...] = ()
    """What the user is told of the request, in the summary; workers don't know it."""

    def options(self, session: int) -> SessionOptions:
        """What a session is generated with."""
        return self.own[session] if self.own else SessionOptions(self.sampling, self.max_tokens, self.stop)

    def session_seed(self, session: int) -> int:
        """The seed of one session."""
        own = self.options(session).seed
        if own is not None:
            return own
        # Imported here: a launcher makes a spec before it needs torch.
        from paceline.kernels.philox import session_seed

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
