"""What a topology says of language models and of speculation."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from paceline.pipeline.speculation.window import Coupling, Policy
from paceline.pipeline.strict_model import LONGEST_MS, StrictModel

__all__ = ["DrafterKind", "LanguageSpec", "SpeculationSpec"]

Auto = Literal["auto"]


class DrafterKind(StrEnum):
    """Where drafts come from."""

    model = "model"
    ngram = "ngram"
    """what followed the last tokens the last time they occurred in the prompt or the text so far"""
    none = "none"
    """nowhere: plain decoding"""


class LanguageSpec(StrictModel):
    """The models of a language workload: `zoo:NAME` or folders in Hugging Face's layout."""

    target: str = "zoo:code/target"
    draft: str = "zoo:code/draft"
    """A smaller model with the target's tokens; it is not read unless `speculation.drafter` is `model`."""


class SpeculationSpec(StrictModel):
    """How drafts are made and judged."""

    drafter: DrafterKind = DrafterKind.model
    coupling: Coupling = Coupling.gumbel
    """At temperature 0 it is always `greedy`."""
    window: Annotated[int, Field(ge=0, le=64)] | Auto = "auto"
    """Drafted tokens that one pass of the target verifies; 0 decodes plainly."""
    depth: Annotated[int, Field(ge=1, le=64)] | Auto = "auto"
    """Windows of a session in flight; 1 drafts only what waits for no verdict."""
    hedge: Annotated[int, Field(ge=0, le=64)] | Auto = "auto"
    """Rejections to draft a refill for, ahead of the verdict."""
    policy: Policy = Policy.hedge
    patience_ms: float = Field(250.0, gt=0, le=LONGEST_MS)
    """How long an idle verifier waits for its drafter before it decodes plainly."""
    chunk: int = Field(256, ge=1)
    """Most tokens of a prompt in one pass."""
    sessions: int = Field(32, ge=1, le=4096)
    """Most sessions that run side by side; others wait for their turn."""
    rows: int = Field(16, ge=1, le=1024)
    """With `deterministic: true` every pass computes this many rows of one session, padded, so that what else is in
    a batch can't change a bit."""
