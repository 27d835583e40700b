"""Lookups are those of a plain scan over the text, however the text was changed in between."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from paceline.pipeline.speculation.drafter import Branch
from paceline.stages.lm.ngram import LONGEST, Lookup, NgramStage


def scanned(tokens: Sequence[int]) -> int:
    """The definition."""
    for length in range(min(LONGEST, len(tokens) - 1), 0, -1):
        for end in range(len(tokens) - 1, length - 1, -1):
            if tokens[end - length : end] == tokens[-length:]:
                return tokens[end]
    return tokens[-1]


@given(st.lists(st.tuples(st.integers(0, 12), st.lists(st.integers(0, 2), min_size=1, max_size=6)), min_size=1))
def test_a_lookup_is_a_scan(changes: list[tuple[int, list[int]]]) -> None:
    lookup, tokens = Lookup(), [0]
    for back, new in changes:
        tokens = tokens[: max(0, len(tokens) - back)] + new
        assert lookup.follower(tokens) == scanned(tokens)


def test_what_is_forgotten_leaves_nothing_behind() -> None:
    lookup = Lookup()
    lookup.follower(list(range(50)))
    held = {gram: list(ends) for gram, ends in lookup._ends.items()}
    lookup.follower([*range(50), *range(20, 40)])
    lookup.follower(list(range(50)))
    assert lookup._ends == held


def test_a_token_more_costs_the_same_however_long_the_text_is() -> None:
    indexed: list[int] = []

    class Counting(Lookup):
        def _grams(self, tokens: list[int], end: int) -> list[tuple[int, ...]]:
            indexed.append(end)
            return super()._grams(tokens, end)

    lookup = Counting()
    text = [(number * number) % 251 for number in range(2000)]
    lookup.follower(text)
    assert len(indexed) == 1999
    indexed.clear()
    for token in range(20):
        text = [*text, token]
        lookup.follower(text)
    assert indexed == list(range(2000, 2020))


def test_sessions_are_apart_and_freed() -> None:
    stage = NgramStage()
    for session in (0, 1):
        stage.open(session, 0)
    steps = [(Branch(0, 0, 0, 5), [1, 2, 3, 1, 2]), (Branch(1, 0, 0, 5), [1, 2, 4, 1, 2])]
    assert [step.token for step in stage.step(steps, 0)] == [3, 4]
    stage.close(0)
    stage.close(1)
    assert stage._lookups == {}
