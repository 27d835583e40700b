"""Window, depth and hedge width to begin with, as the topology fixes them or as a guess until something is known."""

from __future__ import annotations

from paceline.pipeline.speculation.settings import SpeculationSpec
from paceline.pipeline.speculation.window import Policy
from paceline.runtime.language.messages import Settings
from paceline.stages.lm.drafter import can_hedge

__all__ = ["first_settings"]

_FIRST = Settings(window=4, depth=2, hedge=4)
"""What `auto` begins with."""


def first_settings(spec: SpeculationSpec) -> Settings:
    """The settings to begin with. Not every drafter can hedge, and `redraft` never uses hedges."""
    hedges = can_hedge(spec) and spec.policy is not Policy.redraft
    hedge = _FIRST.hedge if spec.hedge == "auto" else spec.hedge
    return Settings(
        window=_FIRST.window if spec.window == "auto" else spec.window,
        depth=_FIRST.depth if spec.depth == "auto" else spec.depth,
        hedge=hedge if hedges else 0,
    )
