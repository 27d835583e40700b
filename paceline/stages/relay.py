"""Stages that take one item and give one: the streaming frame decoder and the sleeper."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from paceline.pipeline.program import Program, Unit
from paceline.stages.failed import failure_in, failure_text, with_failure
from paceline.stages.finite import NotFinite, is_finite
from paceline.stages.item import Item, Key
from paceline.stages.world_model import FrameDecoder

__all__ = ["DecodeStage", "SleepStage", "spend"]

_SPUN_S = 0.0003


def spend(ms: float, since_s: float) -> None:
    """Return `ms` milliseconds after `since_s` on `time.perf_counter`, and not later. The last part is spun, as a
    sleep alone ends up to 0.2 ms late."""
    end_s = since_s + ms / 1000
    left_s = end_s - time.perf_counter()
    if left_s > _SPUN_S:
        time.sleep(left_s - _SPUN_S)
    while time.perf_counter() < end_s:
        pass


class DecodeStage:
    """Latents to pictures, by the model's decoder.

    A latent that is not finite is no frame: it gets the mark of a failed session (see `failed.py`).
    """

    def __init__(self, decoder: FrameDecoder, stage: str = "decode", rank: int | None = None) -> None:
        """`stage` and `rank` are what messages call this place."""
        self._decoder = decoder
        self._stage, self._rank = stage, rank
        self._prompt = 0

    def open(self, session: int, program: Program) -> None:
        """Make ready for a session. Sessions have prompts of one length."""
        self._prompt = program.prompt
        self._decoder.open(session)

    def close(self, session: int) -> None:
        """Free the session's state."""
        self._decoder.close(session)

    def warm(self) -> None:
        """Nothing to warm."""

    @torch.inference_mode()
    def run(self, units: Sequence[Unit], taken: Sequence[Sequence[Item]]) -> list[list[Item]]:
        """See `Stage.run`. An item given has the pictures of a frame, `[K, H, W, 3]`."""
        out = []
        for unit, (item,) in zip(units, taken, strict=True):
            latent, meta = item.tensors[0], item.meta
            if failure_in(meta) is None and not is_finite(latent):
                why = failure_text(self._stage, self._rank, unit.frame, self._prompt, NotFinite("the frame holds"))
                meta = with_failure(meta, why)
            pictures = self._decoder.decode(unit.session, unit.frame - self._prompt, latent)
            out.append([Item(Key(g.edge, unit.session, g.position, g.part), (pictures,), meta) for g in unit.gives])
        return out


class SleepStage:
    """Waits, and adds one to every byte: a stage whose cost is known, for measuring all else."""

    def __init__(self, ms: float) -> None:
        self.ms = ms

    def open(self, session: int, program: Program) -> None:
        """Nothing to keep."""

    def close(self, session: int) -> None:
        """Nothing to free."""

    def warm(self) -> None:
        """Nothing to warm."""

    def run(self, units: Sequence[Unit], taken: Sequence[Sequence[Item]]) -> list[list[Item]]:
        """See `Stage.run`."""
        out = []
        for unit, (item,) in zip(units, taken, strict=True):
            start_s = time.perf_counter()
            tensor = item.tensors[0] + 1
            out.append([Item(Key(g.edge, unit.session, g.position, g.part), (tensor,), item.meta) for g in unit.gives])
            spend(self.ms, start_s)
        return out
