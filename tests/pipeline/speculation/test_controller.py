"""The controller against a sweep of fixed settings, in the simulator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from paceline.pipeline.speculation.controller import OFF, Controller, Settings, predict, ready_share
from paceline.pipeline.speculation.estimate import Estimates
from paceline.pipeline.speculation.formula import Costs, pipelined
from paceline.pipeline.speculation.simulate import simulate_speculation
from paceline.pipeline.speculation.simulation import Simulation, TokenLaw

_WINDOWS, _DEPTHS, _HEDGES = (2, 3, 4, 6), (1, 2), (0, 8)


def _drafts(branches: int) -> float:
    """Milliseconds of a draft step; measured for a small pair on one core, as is the next."""
    return 1.7 + 0.07 * (branches - 1)


def _passes(tokens: int) -> float:
    return 9.2 + 0.65 * (tokens - 1)


def _simulation(acceptance: float, tokens: int, **changes: object) -> Simulation:
    simulation = Simulation(
        TokenLaw(acceptance, rank_power=0.8), _drafts, _passes, window=4, depth=2, hedge=0, round_trip=0.5,
        tokens=tokens, branches=9,
    )  # fmt: skip
    return replace(simulation, **changes)  # type: ignore[arg-type]


def _estimates(acceptance: float, draft: Callable[[int], float] = _drafts) -> Estimates:
    estimates = Estimates()
    estimates.acceptance.prior, estimates.acceptance.prior_weight = acceptance, 1e9
    for n in range(1, 60):
        estimates.draft.observe(n, draft(n))
        estimates.verify.observe(n, _passes(n))
    return estimates


@pytest.mark.slow
@pytest.mark.parametrize(
    "acceptance", [0.7, *(pytest.param(share, marks=pytest.mark.exhaustive) for share in (0.45, 0.88))]
)
def test_it_lands_within_five_per_cent_of_the_best_fixed_setting(acceptance: float) -> None:
    tokens = 4_000
    fixed = {
        Settings(w, d, h): simulate_speculation(_simulation(acceptance, tokens, window=w, depth=d, hedge=h)).speedup
        for w in _WINDOWS
        for d in _DEPTHS
        for h in _HEDGES
    }
    best = max(fixed.values())
    for begin in (Settings(4, 2, 0), Settings(2, 1, 0)):
        controller = Controller(windows=_WINDOWS, depths=_DEPTHS, hedges=_HEDGES, settings=begin)
        report = simulate_speculation(_simulation(acceptance, tokens, controller=controller))
        landed = controller.best
        assert fixed[landed] >= 0.95 * best, (landed, fixed[landed], best)
        # What it tried on the way, and still tries now and then, costs little.
        assert report.settled_speedup > 0.9 * best
        assert controller.predicted == pytest.approx(fixed[controller.settings], rel=0.1)


def test_it_turns_itself_off_where_speculation_loses_and_tries_again() -> None:
    controller = Controller(windows=_WINDOWS, depths=_DEPTHS, hedges=_HEDGES)
    simulation = _simulation(0.7, 250, sessions=32, verify=lambda n: 8.0 + 1.2 * n, controller=controller)
    assert simulate_speculation(replace(simulation, controller=None)).speedup < 0.9
    report = simulate_speculation(simulation)
    assert controller.settings == OFF and controller.predicted == 1.0
    assert report.settled_speedup > 0.9
    estimates = _estimates(0.7)
    controller = Controller(windows=(2,), depths=(1, 2), hedges=(0,), settings=OFF, retry=5)
    for n in range(1, 60):
        estimates.draft.observe(n, 50.0)
    assert [controller.choose(estimates) for _ in range(5)] == [OFF] * 4 + [Settings(2, 1, 0)]


def test_a_setting_is_kept_unless_another_promises_more() -> None:
    estimates = _estimates(0.8)
    controller = Controller(windows=(3, 4), depths=(2,), hedges=(0,), settings=Settings(3, 2, 0), credit=0.0, dwell=0)
    better = predict(Settings(4, 2, 0), estimates) / predict(Settings(3, 2, 0), estimates)
    assert better > 1.0, "the test needs a setting that is a little better"
    controller.hysteresis = better - 1.0 + 0.01
    assert controller.choose(estimates) == Settings(3, 2, 0)
    controller.hysteresis = better - 1.0 - 0.001
    assert controller.choose(estimates) == Settings(4, 2, 0)


def test_what_was_measured_corrects_what_is_predicted() -> None:
    estimates = _estimates(0.8)
    controller = Controller(windows=(2, 8), depths=(2,), hedges=(0,), settings=Settings(8, 2, 0), dwell=0)
    # The second call is past what was in flight when the first one changed the settings.
    present = [controller.choose(estimates) for _ in range(2)][-1]
    for _ in range(20):
        controller.measured(0.6 * predict(present, estimates), estimates, share=0.8)
    assert controller.choose(estimates) != present
    # Luck is no reason: twice the speed with much more accepted than expected is as expected.
    lucky = Controller(windows=(2, 8), depths=(2,), hedges=(0,), settings=Settings(8, 2, 0), dwell=0)
    first = [lucky.choose(estimates) for _ in range(2)][-1]
    costs = Costs(_drafts(1) / _passes(1), _passes(first.window + 0.5) / _passes(1))  # type: ignore[arg-type]
    for _ in range(20):
        lucky.measured(pipelined([0.96], first.window, costs, 0.0, 2), estimates, share=0.96)
    assert lucky.choose(estimates) == first
    assert lucky.predicted == pytest.approx(predict(first, estimates), rel=0.02)


def test_hedges_that_there_is_no_time_for_promise_nothing() -> None:
    quick, slow = _estimates(0.8), _estimates(0.8, lambda n: 5.0 * n)
    assert ready_share(Settings(3, 2, 4), quick, 1) == 1.0
    assert ready_share(Settings(3, 2, 4), slow, 1) == 0.0
    assert ready_share(Settings(3, 2, 0), quick, 1) == 0.0
    assert predict(Settings(3, 2, 4), quick) > predict(Settings(3, 2, 0), quick)
    assert predict(Settings(3, 2, 4), slow) == predict(Settings(3, 2, 0), slow)


def test_nothing_is_changed_before_anything_was_measured() -> None:
    controller = Controller()
    assert controller.choose(Estimates()) == controller.settings == Settings(4, 2, 2)
