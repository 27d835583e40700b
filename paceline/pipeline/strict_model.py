"""The base of all parts of a topology."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["LONGEST_MS", "StrictModel"]


class StrictModel(BaseModel):
    """Can't be changed, and takes no key that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


LONGEST_MS = 3_600_000
"""The longest time that a topology may name, an hour: longer ones are slips, and some overflow timers."""
