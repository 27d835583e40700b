"""What a topology says of language models and of speculation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from paceline.pipeline.speculation.window import Coupling, Policy
from paceline.pipeline.strict_model import LONGEST_MS, StrictModel

__all__ = ["AUTO_DEPTHS", "AUTO_WINDOWS", "NO_DRAFTER", "LanguageSpec", "SpeculationSpec"]

Auto = Literal["auto"]

AUTO_WINDOWS, AUTO_DEPTHS = (1, 2, 3, 4, 6, 8, 12), (1, 2, 3, 4)
"""What `auto` chooses from."""


NO_DRAFTER = "none"
"""In place of a drafter's name: plain decoding"""


class LanguageSpec(StrictModel):
    """The models of a language workload: `zoo:NAME` or folders in Hugging Face's layout."""

    target: str = "zoo:code/target"
    draft: str = "zoo:code/draft"
    """A smaller model with the target's tokens; it is read only by drafters that have a model, as `model`."""


class SpeculationSpec(StrictModel):
    """How drafts are made and judged."""

    drafter: str = Field("model", min_length=1)
    """Where drafts come from: the name of a drafter (`paceline.stages.lm.drafter`), or `none`."""
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Options of the drafter, by name."""
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

    @property
    def rollback(self) -> int:
        """Positions that a rejection may take back: those of all windows in flight and of the one being drafted, each
        with the target's own token before and behind it."""
        window = max(AUTO_WINDOWS) if self.window == "auto" else self.window
        depth = max(AUTO_DEPTHS) if self.depth == "auto" else self.depth
        return (depth + 2) * (window + 2)
