"""The simulator against the formula, and what it must not get wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from paceline.pipeline.speculation.formula import Costs, pipelined, sequential, useful_depth
from paceline.pipeline.speculation.simulate import simulate_speculation
from paceline.pipeline.speculation.simulation import Simulation, TokenLaw
from paceline.pipeline.speculation.window import Coupling, Policy


def _simulation(acceptance: float, c: float, window: int, depth: int, **changes: object) -> Simulation:
    simulation = Simulation(
        TokenLaw(acceptance), draft=lambda _: c, verify=lambda _: 1.0, window=window, depth=depth, tokens=2_500
    )
    return replace(simulation, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("window", [3, 5])
@pytest.mark.parametrize("c", [0.02, 0.05, 0.1, 0.2])
@pytest.mark.parametrize("acceptance", [0.5, 0.7, 0.8, 0.9, 0.95])
def test_the_sweep_agrees_with_the_formula(acceptance: float, c: float, window: int) -> None:
    """Within 5 %, for the share of acceptance that the text really had, from nothing hedged to nearly everything, with
    a way between the two sides, and with three layer runs. What deviation there is comes from the draft step that is
    under way when a rollback comes: it is not interrupted."""
    for hit, way, slots in ((0.0, 0.0, 1), (0.6, 0.0, 1), (0.9, 0.3, 1), (0.5, 0.2, 3)):
        costs = Costs(c, 1.0, way, slots)
        simulation = _simulation(
            acceptance, c, window, useful_depth(window, costs), round_trip=way, verifiers=slots,
            law=TokenLaw(acceptance, forced_hit=hit, seed=window),
        )  # fmt: skip
        report = simulate_speculation(simulation)
        found = report.counters.hedge_hits / max(1, report.counters.hedge_hits + report.counters.redrafts)
        expected = pipelined([report.acceptance], window, costs, found)
        assert report.speedup == pytest.approx(expected, rel=0.05), (hit, way, slots)


@pytest.mark.parametrize("coupling", list(Coupling))
def test_one_window_at_a_time_is_the_sequential_formula(coupling: Coupling) -> None:
    for acceptance, c, window in ((0.6, 0.1, 3), (0.85, 0.05, 6)):
        report = simulate_speculation(_simulation(acceptance, c, window, 1, coupling=coupling, round_trip=0.1))
        expected = sequential([report.acceptance], window, Costs(c, round_trip=0.1))
        assert report.speedup == pytest.approx(expected, rel=0.03)


def test_rejection_gains_as_much_from_the_row_carried_over() -> None:
    for verifiers in (1, 2):
        simulation = _simulation(0.8, 0.1, 4, 3, verifiers=verifiers)
        eager = simulate_speculation(simulation).speedup
        kept = simulate_speculation(replace(simulation, coupling=Coupling.rejection)).speedup
        # With one rank nothing is lost; with two, the windows behind have to arrive before they can be judged.
        assert kept == pytest.approx(eager, rel=0.03 if verifiers == 1 else 0.1)


@pytest.mark.parametrize(("slots", "way", "c"), [(1, 0.0, 0.1), (3, 0.0, 0.05), (2, 0.8, 0.05), (4, 0.0, 0.02)])
def test_depth_gains_until_the_useful_depth_and_not_beyond(slots: int, way: float, c: float) -> None:
    window, acceptance = 4, 0.93
    costs = Costs(c, 1.0, way, slots)
    useful = useful_depth(window, costs)
    speeds = {
        depth: simulate_speculation(
            _simulation(acceptance, c, window, depth, round_trip=way, verifiers=slots, policy=Policy.redraft)
        ).speedup
        for depth in range(1, useful + 3)
    }
    for depth in range(1, useful):
        assert speeds[depth + 1] > speeds[depth] * 1.005, speeds
    for depth in range(useful + 1, useful + 3):
        assert speeds[depth] == pytest.approx(speeds[useful], rel=0.02), speeds


def test_hedges_pay_and_hit_as_often_as_the_law_of_ranks_lets_them() -> None:
    simulation = _simulation(0.8, 0.1, 4, 2, round_trip=0.1)
    plain, speeds, shares = simulate_speculation(simulation), [], []
    for hedge in (1, 2, 4, 8):
        report = simulate_speculation(replace(simulation, hedge=hedge, branches=1 + hedge))
        counters = report.counters
        speeds.append(report.speedup)
        shares.append(counters.hedge_hits / (counters.hedge_hits + counters.hedge_misses))
    assert plain.speedup < speeds[0] and speeds == sorted(speeds) and shares == sorted(shares)
    assert shares[-1] > 0.5 and speeds[-1] > 1.1 * plain.speedup


def test_hedges_never_slow_the_verifier_down_and_stale_work_is_counted() -> None:
    report = simulate_speculation(_simulation(0.7, 0.1, 4, 4, verifiers=3))
    assert report.counters.stale_drafted > report.counters.stale_verified > 0
    assert 0 <= report.drafter_waits < 1 and 0 <= report.verifier_waits < 1


def test_a_pass_that_costs_what_its_tokens_cost_makes_speculation_lose() -> None:
    simulation = _simulation(0.7, 0.05, 4, 2, verify=lambda n: 0.2 + 0.1 * n, sessions=16, tokens=200)
    assert simulate_speculation(simulation).speedup < 1.0
    off = simulate_speculation(replace(simulation, window=0))
    assert off.speedup == pytest.approx(1.0, rel=0.02) and off.counters.windows == 0


def test_a_slow_drafter_leaves_plain_speed() -> None:
    simulation = _simulation(0.9, 30.0, 4, 2, patience=0.5, tokens=500)
    report = simulate_speculation(simulation)
    assert report.speedup > 0.9 and report.counters.from_plain > 400
