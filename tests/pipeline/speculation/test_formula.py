"""The formulas against each other and against sums done by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.pipeline.speculation.formula import Costs, pipelined, sequential, useful_depth


@given(
    st.floats(0.05, 0.98), st.floats(0.01, 0.5), st.integers(1, 9), st.floats(0, 1), st.floats(0, 1), st.integers(1, 4)
)
def test_they_are_the_formulas_of_the_design(a: float, c: float, g: int, h: float, d: float, slots: int) -> None:
    costs = Costs(c, 1.0, d, slots)
    t, whole = max(1 / slots, g * c), a**g
    expected = (1 / (1 - a)) / ((1 - h) * g * c + 1 + d + a * (whole / (1 - whole)) * t)
    assert pipelined([a], g, costs, h) == pytest.approx(expected)
    expected = (1 - a ** (g + 1)) / ((1 - a) * (g * c + 1 + d))
    assert sequential([a], g, costs) == pytest.approx(expected)


@given(st.lists(st.floats(0.05, 0.95), min_size=1, max_size=6), st.floats(0.01, 0.3), st.floats(0, 1))
def test_acceptance_by_index_is_a_sum_over_where_a_window_fails(by_index: list[float], c: float, h: float) -> None:
    """One cycle, written out: after k whole windows the next fails at index i."""
    g, costs = len(by_index), Costs(c, 1.0, 0.2)
    t = max(1.0, g * c)
    reached = 1.0
    fails = []
    for a in by_index:
        fails.append(reached * (1 - a))
        reached *= a
    tokens = time = 0.0
    for k in range(4000):
        for i, p in enumerate(fails):
            chance = reached**k * p
            tokens += chance * (k * g + i + 1)
            # Known one pass earlier if it fails at its first token and was not the first of its cycle.
            time += chance * ((1 - h) * g * c + 1.2 + (k - (i == 0 and k > 0)) * t)
        if reached**k < 1e-12:
            break
    assert pipelined(by_index, g, costs, h) == pytest.approx(tokens / time, rel=1e-6)


def test_limits() -> None:
    # All accepted: one window a period. Nothing accepted: a cycle a token.
    assert pipelined([1.0], 4, Costs(0.1)) == pytest.approx(4.0)
    assert pipelined([1.0], 4, Costs(0.1, slots=2)) == pytest.approx(8.0)
    assert pipelined([0.0], 4, Costs(0.1)) == pytest.approx(1 / 1.4)
    assert sequential([1.0], 4, Costs(0.0)) == pytest.approx(5.0)
    # In turns: the period is a whole cycle.
    assert pipelined([1.0], 4, Costs(0.1, round_trip=0.2), depth=1) == pytest.approx(4 / 1.6)


def test_useful_depth() -> None:
    assert useful_depth(4, Costs(0.1)) == 2
    assert useful_depth(4, Costs(0.1, slots=4)) == 4
    assert useful_depth(3, Costs(0.1, round_trip=1.3)) == 3
    assert useful_depth(10, Costs(0.5)) == 2


def test_what_has_no_meaning_is_refused() -> None:
    for wrong in ({"draft": -1.0}, {"draft": 0.1, "verify": 0.0}, {"draft": 0.1, "slots": 0}):
        with pytest.raises(ValueError, match="has to take time"):
            Costs(**wrong)  # type: ignore[arg-type]
    for acceptance, window in (([], 2), ([0.5], 0), ([1.5], 2)):
        with pytest.raises(ValueError, match="at least 1"):
            sequential(acceptance, window, Costs(0.1))
