"""The text of a session as it is committed: whole characters, held back where it may be the beginning of a stop string.

Everything here is a function of the tokens alone, so that a text ends at the same place however its tokens came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paceline.stages.lm.tokenizer import Tokenizer

__all__ = ["Stop", "StopMatcher", "TextStream"]


@dataclass(frozen=True, slots=True)
class Stop:
    """A stop string was found: which, and how many tokens the sequence has up to and with the one that completed it."""

    string: str
    tokens: int


class StopMatcher:
    """Looks for stop strings in text that comes in pieces. The one that is complete first wins; of several that end at
    the same character, the one that begins first. So the pieces' borders don't matter."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        if any(not stop for stop in stops):
            raise ValueError("a stop string is empty; leave it out")
        self._stops = tuple(stops)
        self._longest = max((len(stop) for stop in stops), default=0)
        self._held = ""
        self.found: str | None = None
        """The stop string, once there was one."""

    def push(self, piece: str) -> str:
        """The text that is certain to come before any stop string. After one was found, nothing comes any more."""
        if self.found is not None or not piece:
            return ""
        text = self._held + piece
        ends = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            _, begin, self.found = min(ends)
            self._held = ""
            return text[:begin]
        hold = self._beginning(text)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        rest, self._held = self._held, ""
        return rest

    def _beginning(self, text: str) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            end = text[len(text) - length :]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0


class TextStream:
    """Text of the tokens that come after `context` (the prompt), up to a stop string.

    `cut` says that the context may end within a character: its end is then the first that is given, once it is
    complete.

    >>> stream = TextStream(tokenizer, stops=["\\n\\n"])
    >>> for token in committed:
    ...     show(stream.push(token))
    ...     if stream.stop:
    ...         break  # the sequence is to be cut to stream.stop.tokens
    >>> show(stream.finish())
    """

    def __init__(
        self, tokenizer: Tokenizer, stops: Sequence[str] = (), context: Sequence[int] = (), cut: bool = False
    ) -> None:
        self._pieces = tokenizer.pieces(context, cut)
        self._matcher = StopMatcher(stops)
        self.tokens = 0
        """Tokens taken, which end with the one that completes a stop string."""
        self.stop: Stop | None = None

    def push(self, token: int) -> str:
        """Take a token; returns the text that may be shown now. Tokens after a stop string are not taken."""
        if self.stop is not None:
            return ""
        self.tokens += 1
        text = self._matcher.push(self._pieces.push(token))
        if self._matcher.found is not None:
            self.stop = Stop(self._matcher.found, self.tokens)
        return text

    def finish(self, cut: bool = False) -> str:
        """The rest of the text, when no more tokens come. With `cut` an incomplete character is left out: the stream
        that goes on behind these tokens gives it."""
        if self.stop is not None:
            return ""
        text = self._matcher.push("" if cut else self._pieces.finish())
        if self._matcher.found is not None:
            self.stop = Stop(self._matcher.found, self.tokens)
        return text + self._matcher.finish()
