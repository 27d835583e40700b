"""What the first verifier makes of its measurements, with times that are made up and therefore known."""

from __future__ import annotations

import pytest

from paceline.pipeline.speculation.controller import OFF, Settings
from paceline.pipeline.speculation.settings import SpeculationSpec
from paceline.pipeline.speculation.window import Verdict, Window
from paceline.runtime.language.messages import StatsReport
from paceline.runtime.language.tuning import Tuner

PASS_S = 0.010


class Clock:
    """A generation of one session whose passes cost `fixed + each * tokens` and whose drafts take `step_s` a token."""

    def __init__(self, tuner: Tuner, step_s: float, acceptance: float, each_s: float = 0.0, runs: int = 1) -> None:
        self.tuner, self.step_s, self.each_s, self.runs = tuner, step_s, each_s, runs
        self.accepted_of_ten = round(10 * acceptance)
        self.now, self.tokens, self.passes = 100.0, 0, 0
        self.seen: list[Settings] = []

    def run(self, passes: int) -> None:
        """So many passes with whatever the tuner has chosen."""
        for _ in range(passes):
            self.passes += 1
            self._pass(self.tuner.settings)
            self.tuner.told(StatsReport(0, ((1, round(1e6 * self.step_s)),)), 0.0005, 1)
            if self.tuner.observe(self.now, 1):
                self.seen.append(self.tuner.settings)

    def _pass(self, settings: Settings) -> None:
        gamma = settings.window
        spent = PASS_S + self.each_s * (gamma + 1)
        self.now += max(spent, gamma * self.step_s if settings.depth > 1 else 0.0)
        self.now += gamma * self.step_s if settings.depth == 1 else 0.0
        drafts = tuple(range(gamma))
        # Acceptance without luck: the same share of every ten tokens at every position.
        accepted = 0
        while accepted < gamma and (7 * (self.passes + 3 * accepted)) % 10 < self.accepted_of_ten:
            accepted += 1
        rejected = accepted < gamma
        window = Window(0, 0, self.tokens, (9, *drafts), 1)
        self.tuner.passed([window], spent / self.runs)
        new = (*drafts[:accepted], 9)
        self.tokens += len(new)
        self.tuner.committed(
            Verdict(0, 0, 0, new, self.tokens, self.tokens, accepted, accepted + rejected, rejected, -1, accepted)
        )


def test_it_begins_plainly_and_chooses_when_both_costs_are_known() -> None:
    tuner = Tuner(SpeculationSpec(), 1, drafts=True)
    assert tuner.settings == OFF
    window = Window(0, 0, 5, (1,), 1)
    for _ in range(9):
        tuner.passed([window], PASS_S)
        assert not tuner.observe(1.0, 1)
    tuner.told(StatsReport(0, ((1, 500),) * 4), None, 1)
    assert tuner.observe(2.0, 1)
    assert tuner.settings.window > 0
    assert tuner.looks == 1
    assert tuner.predicted is not None
    assert tuner.predicted > 1


def test_a_cheap_and_good_drafter_is_used_and_its_speed_is_told() -> None:
    tuner = Tuner(SpeculationSpec(), 1, drafts=True)
    clock = Clock(tuner, step_s=0.0005, acceptance=0.8)
    clock.run(400)
    assert tuner.settings.window >= 2
    assert tuner.measured is not None
    assert tuner.predicted is not None
    assert tuner.measured > 1.5
    assert tuner.predicted == pytest.approx(tuner.measured, rel=0.3)


def test_a_useless_drafter_is_switched_off_and_tried_again() -> None:
    tuner = Tuner(SpeculationSpec(), 1, drafts=True)
    clock = Clock(tuner, step_s=0.009, acceptance=0.1, each_s=0.004)
    clock.run(600)
    assert tuner.settings == OFF
    clock.seen.clear()
    clock.run(3000)
    # Nothing is learnt of acceptance while it is off.
    assert any(not settings.off for settings in clock.seen)
    assert tuner.settings == OFF


def test_a_fixed_window_is_kept_whatever_it_costs() -> None:
    tuner = Tuner(SpeculationSpec(window=3), 1, drafts=True)
    clock = Clock(tuner, step_s=0.009, acceptance=0.1, each_s=0.004)
    clock.run(600)
    assert tuner.settings.window == 3
    assert {settings.window for settings in clock.seen} == {3}


def test_fixed_settings_are_only_measured() -> None:
    tuner = Tuner(SpeculationSpec(window=2, depth=2, hedge=1), 1, drafts=True)
    assert tuner.settings == Settings(2, 2, 1)
    clock = Clock(tuner, step_s=0.0005, acceptance=1.0)
    clock.run(100)
    assert (tuner.settings, clock.seen) == (Settings(2, 2, 1), [])
    # Three tokens in the time of one plain pass.
    assert tuner.measured == pytest.approx(3.0, rel=0.01)


def test_runs_of_layers_count_as_one_pass() -> None:
    tuner = Tuner(SpeculationSpec(window=2, depth=2, hedge=1), 2, drafts=True)
    clock = Clock(tuner, step_s=0.0005, acceptance=1.0, runs=2)
    clock.run(100)
    assert tuner.estimates.verify.at(1) == pytest.approx(PASS_S)
    assert tuner.measured == pytest.approx(3.0, rel=0.01)


def test_a_prompt_is_no_pass_and_its_time_is_left_out() -> None:
    tuner = Tuner(SpeculationSpec(window=2, depth=2, hedge=1), 1, drafts=True)
    clock = Clock(tuner, step_s=0.0005, acceptance=1.0)
    tuner.observe(clock.now, 1)
    tuner.passed([Window(0, 0, 0, tuple(range(200)), 200)], 5.0)
    clock.now += 5.0
    clock.run(100)
    assert tuner.estimates.verify.at(3) == pytest.approx(PASS_S)
    assert tuner.measured == pytest.approx(3.0, rel=0.01)


def test_without_a_drafter_nothing_is_chosen_or_told() -> None:
    tuner = Tuner(SpeculationSpec(), 1, drafts=False)
    tuner.passed([Window(0, 0, 5, (1,), 1)], PASS_S)
    assert not tuner.observe(1.0, 1)
    assert (tuner.settings, tuner.predicted, tuner.measured) == (OFF, None, None)


def test_an_ngram_drafter_and_redraft_never_hedge() -> None:
    for spec in (SpeculationSpec(drafter="ngram"), SpeculationSpec(policy="redraft")):
        tuner = Tuner(spec, 1, drafts=True)
        clock = Clock(tuner, step_s=0.0001, acceptance=0.7)
        clock.run(300)
        assert clock.seen
        assert {settings.hedge for settings in clock.seen} == {0}
