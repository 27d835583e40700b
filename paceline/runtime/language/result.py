"""What a generation leaves behind."""

from __future__ import annotations

import msgspec

from paceline.runtime.result import Result

__all__ = ["LanguageResult", "TextResult"]


class TextResult(msgspec.Struct, frozen=True):
    """One session. Times are seconds from the start of the run."""

    id: int
    text: str
    token_ids: list[int]
    """The new ones, without the prompt."""
    finish_reason: str
    prompt_tokens: int
    started_s: float
    first_token_s: float
    finished_s: float
    drafted: int = 0
    """of the new tokens: committed as drafted"""
    refilled: int = 0
    """the target's own in place of a rejected draft, or behind the last one of a window; the rest are plain"""


class LanguageResult(Result[TextResult], frozen=True, kw_only=True):
    """The whole generation."""

    settings: dict[str, int]
    """Window, depth and hedge width at the end."""
    predicted_speedup: float | None
    measured_speedup: float | None
    warnings: list[str]
    parked: list[int] = msgspec.field(default_factory=list)
    """Numbers of the sessions that can be resumed."""
