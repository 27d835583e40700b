"""Hedges: continuations drafted ahead for the likeliest rejections, so that a rejection finds its refill ready.

A hedge is for one outcome: "the token at position p turns out to be r". Its branch of the draft is the main chain
before p, then r, then its own tokens. How likely it is, is the acceptance of all drafts before p, times the rejection
of the one at p, times the drafter's own share of r among the other tokens. The F likeliest are drafted, the likeliest
first; so the fan-out falls geometrically with the position.

Under `rejection` the tokens of a hedge are drawn with a branch number of its own, which is never 0. They are
independent of the main chain then, and whether a hedge exists says nothing about its tokens: using it does not bias
the output.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

__all__ = ["Alternative", "Hedge", "Hedges", "Outcome", "likeliest"]

Alternative = tuple[int, float]
"""A token, and the chance that it is the one at its position, given that the drafted one is not."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A possible end of the main chain: the token at `position` is `token`, with this likelihood."""

    position: int
    token: int
    likelihood: float


@dataclass(slots=True)
class Hedge:
    """The continuation behind one outcome: `tokens` follow the outcome's own."""

    number: int
    position: int
    token: int
    tokens: list[int] = field(default_factory=list)
    alternatives: list[tuple[Alternative, ...]] = field(default_factory=list)
    ended: bool = False
    """nothing can follow its last token"""


class Hedges:
    """The hedges of one session."""

    __slots__ = ("_by_number", "_by_outcome", "_last")

    def __init__(self) -> None:
        self._by_outcome: dict[tuple[int, int], Hedge] = {}
        self._by_number: dict[int, Hedge] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._by_outcome)

    def __iter__(self) -> Iterator[Hedge]:
        return iter(self._by_outcome.values())

    def new_number(self) -> int:
        """A branch number that was never given before in this session."""
        self._last += 1
        return self._last

    def get(self, number: int) -> Hedge | None:
        """The hedge with a branch number, if it still exists."""
        return self._by_number.get(number)

    def find(self, position: int, token: int) -> Hedge | None:
        """The hedge for an outcome, if there is one."""
        return self._by_outcome.get((position, token))

    def ensure(self, outcome: Outcome) -> Hedge:
        """The hedge for an outcome; a new one where there was none."""
        key = (outcome.position, outcome.token)
        hedge = self._by_outcome.get(key)
        if hedge is None:
            hedge = Hedge(self.new_number(), *key)
            self._by_outcome[key] = hedge
            self._by_number[hedge.number] = hedge
        return hedge

    def forget_before(self, position: int) -> None:
        """Drop hedges for positions before `position`: they are decided."""
        self._keep(h for h in self._by_outcome.values() if h.position >= position)

    def clear(self) -> None:
        """Drop all: the main chain that they branch off is gone."""
        self._keep(())

    def _keep(self, hedges: Iterable[Hedge]) -> None:
        kept = list(hedges)
        self._by_outcome = {(h.position, h.token): h for h in kept}
        self._by_number = {h.number: h for h in kept}


def likeliest(
    chain: Iterable[tuple[int, float, Sequence[Alternative]]], end: tuple[int, Sequence[Alternative]] | None, width: int
) -> list[Outcome]:
    """The `width` likeliest outcomes, the likeliest first.

    `chain` gives, for each drafted position in flight, the position, the acceptance there (given that all before are
    accepted) and what else may be there. `end` is the position behind the last one, with what may be there, where the
    target itself decides it.
    """
    outcomes: list[Outcome] = []
    reached = 1.0
    for position, acceptance, alternatives in chain:
        rejected = reached * (1.0 - acceptance)
        outcomes += [Outcome(position, token, rejected * share) for token, share in alternatives]
        reached *= acceptance
    if end is not None:
        outcomes += [Outcome(end[0], token, reached * share) for token, share in end[1]]
    # Ties go to the earlier position and the smaller token, so that the order never depends on how a sort works.
    outcomes.sort(key=lambda o: (-o.likelihood, o.position, o.token))
    return outcomes[:width]
