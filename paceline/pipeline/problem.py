"""One thing that is wrong in a topology, where it stands, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["KeyPath", "Problem", "TopologyError", "closest", "nearest"]

KeyPath = tuple[str | int, ...]
"""Where a value stands: `("edges", 0, "inflight")`; written `edges.0.inflight`, as `--set` takes it."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Prints as `file:line: key: what is wrong; what would be right`.

    `file` is the topology's path, or `--set KEY` where the value came from the command line (then there is no line).
    The pure checks know neither; `load.py` fills both in.
    """

    path: KeyPath
    wrong: str
    right: str
    file: str = ""
    line: int | None = None

    @property
    def key(self) -> str:
        """The path as text; `topology` for the file as a whole."""
        return ".".join(map(str, self.path)) or "topology"

    def __str__(self) -> str:
        line = "" if self.line is None else f"{self.line}:"
        place = f"{self.file}:{line} " if self.file else ""
        return _printable(f"{place}{self.key}: {self.wrong}; {self.right}")


class TopologyError(ValueError):
    """A topology that can't be run; `problems` holds everything that is wrong with it, in order of lines."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that a misspelt one is nearest to, if any is close."""
    return next(iter(difflib.get_close_matches(word, list(known), 1, 0.6)), None)


def nearest(word: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?` for the closest known word, else the list of all of them."""
    words = list(known)
    close = closest(word, words)
    if close is not None:
        return f"did you mean '{close}'?"
    return f"known are {', '.join(words)}" if words else "none is known here"


def _printable(text: str) -> str:
    """One line of text: what can't be printed is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)
