"""The base of all parts of a topology, and sizes in bytes as people write them."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

__all__ = ["LONGEST_MS", "Size", "SizeOrNone", "StrictModel", "format_size", "parse_size"]


class StrictModel(BaseModel):
    """Can't be changed, and takes no key that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


LONGEST_MS = 3_600_000
"""The longest time that a topology may name, an hour: longer ones are slips, and some overflow timers."""


_UNITS = {
    "": 1,
    "b": 1,
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", 1)},
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", 1)},
}
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*$")


def parse_size(value: object) -> object:
    """Bytes of a size such as `64MiB`; anything that is not text is passed on for its own check.

    Raises `ValueError` where the text is no size.
    """
    if not isinstance(value, str):
        return value
    match = _SIZE.match(value)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError(f"{value!r} is not a size; write bytes or a unit, such as 4096, 64KiB, 1.5MiB or 2GB")
    return math.floor(Fraction(match[1]) * unit + Fraction(1, 2))


def format_size(size: float) -> str:
    """A size with a binary unit and three figures: `196 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1023.5:
            return f"{size:.3g} {unit}" if abs(size) < 999.5 else f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]
"""A size in a topology."""
SizeOrNone = Annotated[int, BeforeValidator(parse_size), Field(ge=0)]
"""A size, or 0 for none."""
