"""An n-gram drafter: what followed the last tokens the last time they occurred (prompt lookup, Saxena 2023).

It always has an answer, down to repeating the last token: a drafter that said nothing would make its verifier wait for
it, and one wrong token more in a window costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from paceline.pipeline.speculation.drafter import Branch, Rollback
from paceline.pipeline.speculation.window import Window
from paceline.stages.lm.branches import common_prefix
from paceline.stages.lm.drafter import DrafterPlace, DraftStep

__all__ = ["Lookup", "NgramDrafter", "NgramStage"]

LONGEST = 4
"""Tokens of the longest n-gram that is looked up."""


class Lookup:
    """Where every n-gram of one text has ended so far; a token more costs the same however long the text is."""

    def __init__(self, longest: int = LONGEST) -> None:
        self._longest = longest
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], list[int]] = {}

    def follower(self, tokens: list[int]) -> int:
        """The token behind the last earlier occurrence of the longest end of `tokens` that has one; the last token
        where there is none. `tokens` is not empty, and is kept."""
        self._become(tokens)
        for length in range(min(self._longest, len(tokens) - 1), 0, -1):
            ends = self._ends.get(tuple(tokens[-length:]))
            if ends:
                return tokens[ends[-1]]
        return tokens[-1]

    def _become(self, tokens: list[int]) -> None:
        """Index the n-grams that have a token behind them, so the text's end is not its own last occurrence."""
        old, new = len(self._tokens), len(tokens)
        kept = max(0, min(common_prefix(self._tokens, tokens), old - 1, new - 1))
        for end in range(old - 1, kept, -1):
            for gram in self._grams(self._tokens, end):
                ends = self._ends[gram]
                ends.pop()
                if not ends:
                    del self._ends[gram]
        for end in range(kept + 1, new):
            for gram in self._grams(tokens, end):
                self._ends.setdefault(gram, []).append(end)
        self._tokens = tokens

    def _grams(self, tokens: list[int], end: int) -> list[tuple[int, ...]]:
        return [tuple(tokens[end - length : end]) for length in range(1, min(self._longest, end) + 1)]


class NgramDrafter:
    """What followed the last tokens the last time they occurred in the prompt or the text so far. `longest` is the
    number of tokens that are looked up at most."""

    can_hedge = False
    has_model = False

    def __init__(self, longest: int = LONGEST) -> None:
        if isinstance(longest, bool) or not isinstance(longest, int) or not 1 <= longest <= 64:
            raise ValueError(f"longest is {longest}; it has to be a whole number from 1 to 64")
        self.longest = longest

    def load(self, place: DrafterPlace) -> NgramStage:
        """It needs nothing."""
        return NgramStage(self.longest)


class NgramStage:
    """Drafts for many sessions without a model."""

    def __init__(self, longest: int = LONGEST) -> None:
        self._longest = longest
        self._lookups: dict[int, Lookup] = {}

    def open(self, session: int, seed: int) -> None:
        """Make ready for a session."""
        self._lookups[session] = Lookup(self._longest)

    def close(self, session: int) -> None:
        """Free a session."""
        del self._lookups[session]

    def step(self, steps: Sequence[tuple[Branch, list[int]]], others: int) -> list[DraftStep]:
        """Draft one token for each branch, given with all tokens before it."""
        return [DraftStep(branch, self._lookups[branch.session].follower(tokens)) for branch, tokens in steps]

    def settle(self, session: int, length: int, rollback: Rollback | None) -> None:
        """Nothing to do: the tokens of the next step say what was rolled back."""

    def evidence(self, window: Window) -> tuple[None, None]:
        """None: see `VerifyStage` for what a certain draft means under `rejection`."""
        return None, None
