"""Plain values that YAML 1.1, which PyYAML reads, takes for something else than YAML 1.2 and most readers do."""

from __future__ import annotations

import re

__all__ = ["number_of", "surprise"]

_WORDS = {"yes": "true", "on": "true", "no": "false", "off": "false"}
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_SCIENTIFIC = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+")


def surprise(text: str, value: object) -> tuple[str, str] | None:
    """What is wrong with a plain value `text` that YAML 1.1 reads as `value`, and what would be right; None where every
    version of YAML reads the same. In quotes, a value is always text."""
    quoted = f"'{text}' in quotes for text"
    if isinstance(value, bool):
        meant = _WORDS.get(text.lower())
        if meant is not None:
            return f"is {text}, which YAML 1.1 reads as {meant}", f"write {meant}, or {quoted}"
    elif isinstance(value, int | float):
        if ":" in text:
            return f"is {text}, which YAML 1.1 reads as {value:g} (base 60)", f"write {value:g}, or {quoted}"
        if _OCTAL.fullmatch(text):
            decimal = text.replace("_", "").replace("0", "", 1)
            wrong = f"is {text}, which YAML 1.1 reads as {value} (base 8)"
            return wrong, f"write {value} or {decimal}, or {quoted}"
        if "_" in text:
            return f"is {text}, which YAML 1.1 reads as {value} and YAML 1.2 as text", f"write {value}, or {quoted}"
        if text.lstrip("+-").startswith("0b"):
            return f"is {text}, which YAML 1.1 reads as {value} (base 2)", f"write {value}, or {quoted}"
    return None


def number_of(text: str) -> float | None:
    """The number that a plain value such as `1e-3` is in YAML 1.2, and text in YAML 1.1; None for any other."""
    return float(text) if _SCIENTIFIC.fullmatch(text) else None
