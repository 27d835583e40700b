"""Estimates: censored acceptance, lines of cost, hit rates."""

from __future__ import annotations

import random

import pytest

from paceline.pipeline.speculation.estimate import Acceptance, CostLine, HedgeHits, Mean
from paceline.pipeline.speculation.window import Verdict


def _verdict(accepted: int, judged: int, offset: int = 0) -> Verdict:
    return Verdict(0, 0, 0, (), 0, 0, accepted, judged, judged > accepted, -1, offset=offset)


def test_acceptance_counts_what_was_judged_only() -> None:
    rng = random.Random(1)
    truth = (0.9, 0.7, 0.5, 0.8)
    acceptance = Acceptance(half_life=4_000)
    for _ in range(4_000):
        accepted = 0
        while accepted < 4 and rng.random() < truth[accepted]:
            accepted += 1
        acceptance.observe(_verdict(accepted, min(4, accepted + 1)))
    # Counting what lies behind a rejection as rejected would give 0.9 * 0.7 * 0.5 * 0.8 = 0.25 for the last.
    assert acceptance.values(4) == pytest.approx(truth, abs=0.06)
    assert acceptance.values(6)[4:] == (acceptance.mean,) * 2


def test_acceptance_of_a_trimmed_window_counts_where_it_was_drafted() -> None:
    acceptance = Acceptance()
    for _ in range(100):
        acceptance.observe(_verdict(0, 1, offset=3))
        acceptance.observe(_verdict(3, 3))
    assert acceptance.at(3) < 0.25 and acceptance.at(0) > 0.8


def test_acceptance_forgets() -> None:
    acceptance = Acceptance(half_life=50)
    assert acceptance.values(2) == (0.7, 0.7)
    for _ in range(200):
        acceptance.observe(_verdict(4, 4))
    assert acceptance.mean > 0.97
    for _ in range(200):
        acceptance.observe(_verdict(0, 1))
    assert acceptance.at(0) < 0.1


def test_a_line_of_costs_is_found() -> None:
    line = CostLine()
    assert not line.known and line.at(5) == 0.0
    line.observe(4, 2.0)
    # One point: all of it is fixed.
    assert line.line() == (2.0, 0.0)
    for x in range(1, 40):
        line.observe(x, 1.5 + 0.25 * x)
    assert line.at(100) == pytest.approx(26.5, rel=0.1)
    for x in range(1, 2_000):
        line.observe(x % 7, 3.0 - 0.1 * (x % 7))
    # Neither part is ever negative.
    assert line.line()[1] == 0.0


def test_hits_at_one_width_say_something_of_others() -> None:
    hits = HedgeHits()
    assert 0 < hits.chance(1) < hits.chance(4) < 1 and hits.chance(0) == 0
    for i in range(400):
        hits.observe(i % 4 != 0, 3)
    assert hits.chance(3) == pytest.approx(0.75, abs=0.05) and hits.chance(1) == pytest.approx(0.5, abs=0.05)
    # Half of the hedges ready: twice as many hits as seen, had there been time.
    for i in range(400):
        hits.observe(i % 4 == 0, 3, ready=0.5)
    assert hits.chance(3) == pytest.approx(0.5, abs=0.05)


def test_a_mean_weighs_by_count_and_forgets() -> None:
    mean = Mean(half_life=10)
    assert mean.value(3.0) == 3.0
    mean.observe(1.0)
    mean.observe(4.0, 2.0)
    assert 2.9 < mean.value(0.0) < 3.2
    for _ in range(100):
        mean.observe(7.0)
    assert mean.value(0.0) == pytest.approx(7.0, abs=0.01)


def test_a_hint_says_how_steep_a_cost_line_is_until_something_nearer_does() -> None:
    line = CostLine()
    for _ in range(5):
        line.observe(32, 0.010)
    assert line.at(128) == 0.010
    line.hint = 332, 0.040
    assert line.at(32) == pytest.approx(0.010)
    assert line.at(132) == pytest.approx(0.020)
    line.hint = 60, 0.040
    assert line.at(128) == 0.010
    line.hint = 332, 0.040
    line.observe(64, 0.010)
    assert line.at(128) == pytest.approx(0.010)
