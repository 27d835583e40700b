from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.tiers.block_stats import BlockStats
from paceline.tiers.policies import ONLINE, policy
from paceline.tiers.profile import of_use
from paceline.tiers.settings import Tier
from paceline.tiers.traces.oracle import Future, belady, ceiling, oracle_score
from paceline.tiers.traces.planted import Sizes, planted
from paceline.tiers.traces.replay import ReplayError, ReplaySettings, replay, slots_of
from paceline.tiers.traces.trace import Trace
from tests.tiers.traces.small import small_traces, trace_of


@dataclass(frozen=True)
class Whim:
    """A policy without reason: scores that look like chance, but are a function of block and step."""

    seed: int
    name = "whim"

    def keep(self, facts: BlockStats, step: int) -> np.ndarray:
        return ((facts.block + 1) * 7919 * (step + 3) * (self.seed + 5) % 101).astype(np.float64)


settings = st.builds(
    ReplaySettings,
    hbm=st.floats(0.1, 1),
    dram=st.floats(0, 1),
    bandwidth=st.integers(1, 6),
    hysteresis=st.sampled_from([0.0, 0.1]),
    refresh=st.integers(1, 3),
    spare=st.sampled_from([0.0, 0.0625]),
)
policies = st.one_of(st.builds(Whim, st.integers(0, 99)), st.sampled_from(ONLINE).map(policy))


def total(trace: Trace) -> float:
    return sum(float(call.masses.sum()) for step in trace.steps for call in step.calls)


def births(trace: Trace) -> float:
    """Mass of blocks in the step in which they are made."""
    seen: set[int] = set()
    mass = 0.0
    for step in trace.steps:
        for call in step.calls:
            pairs = zip(call.blocks.tolist(), call.masses.tolist(), strict=True)
            mass += sum(m for block, m in pairs if block not in seen)
        seen.update(block for call in step.calls for block in call.blocks.tolist())
    return mass


@given(small_traces(layers=2), policies, settings)
def test_nothing_is_counted_twice_or_lost(trace: Trace, by: Whim, how: ReplaySettings) -> None:
    score = replay(trace, by, how)
    lookups = sum(int(of_use(call.masses).sum()) for step in trace.steps for call in step.calls)
    assert score.lookups == sum(score.hits) == lookups
    assert sum(score.mass) == pytest.approx(total(trace))
    assert score.mass_share(Tier.nvme) == pytest.approx(1.0 if total(trace) else 0.0)
    assert score.forced <= score.moves
    assert replay(trace, by, how) == score


@given(small_traces(), policies, settings)
def test_no_policy_beats_the_ceiling_or_belady(trace: Trace, by: Whim, how: ReplaySettings) -> None:
    score = replay(trace, by, how)
    best = ceiling(trace, how)
    everything = total(trace)
    assert score.mass[0] <= best[0] * everything + 1e-9
    assert score.mass[0] + score.mass[1] <= best[1] * everything + 1e-9
    least = belady(trace, slots_of(trace, how)[0])
    assert least.lookups == score.lookups
    assert score.lookups - score.hits[0] + score.prefetches >= least.misses


@given(small_traces(), policies)
def test_with_room_for_all_nothing_moves(trace: Trace, by: Whim) -> None:
    score = replay(trace, by, ReplaySettings(1.0, spare=0.0))
    assert (score.moves, score.mass[1:], score.hits[1:]) == (0, (0.0, 0.0), (0, 0))


@given(small_traces(), st.floats(0.1, 1))
def test_an_unhindered_oracle_reaches_the_ceiling(trace: Trace, hbm: float) -> None:
    """Where no new block pushes another out, bandwidth is free and the next step is all that counts."""
    n = len(trace.blocks)
    masses = np.zeros((len(trace.steps), n))
    for row, step in enumerate(trace.steps):
        masses[row, : len(step.calls[0].blocks)] = step.calls[0].masses
    trace = trace_of(masses, prompt=n)
    how = ReplaySettings(hbm, bandwidth=99, hysteresis=0.0, spare=0.0)
    score = replay(trace, policy("oracle", future=Future(trace, 1)), how)
    assert score.mass[0] == pytest.approx(ceiling(trace, how)[0] * total(trace))
    assert oracle_score(trace, how).mass[0] == pytest.approx(score.mass[0])


@given(small_traces(), st.integers(1, 5), st.lists(st.integers(-3, 20), max_size=12))
def test_the_future_is_the_weighted_sum_of_what_comes(trace: Trace, lookahead: int, asked: list[int]) -> None:
    future = Future(trace, lookahead)
    blocks = np.arange(len(trace.blocks))
    for step in [*asked, *sorted(asked)]:
        need = np.zeros(len(blocks))
        coming = [s for s in trace.steps if s.number > step][:lookahead]
        for ahead, later in enumerate(coming):
            need[later.calls[0].blocks] += (1 - ahead / lookahead) * later.calls[0].masses
        assert np.allclose(future(blocks, step), need, atol=1e-12)


def test_a_needle_is_fetched_once_and_held_while_it_is_looked_at() -> None:
    """Ten blocks, room for three: the sink, the needle, and what is said now."""
    masses = np.full((12, 10), 0.02)
    masses[:, 0], masses[:, 9] = 0.5, 0.2
    masses[4:9, 4] = 0.6
    how = ReplaySettings(0.3, hysteresis=0.0, spare=0.0)
    trace = trace_of(masses, prompt=10)
    by_mass = replay(trace, policy("attention-mass"), how)
    # Blocks 0, 4 and 9 take two promotions: the needle, and the sink, which a prompt without masses had lost or kept.
    assert by_mass.hit_share() > replay(trace, policy("window"), how).hit_share()
    oracle = oracle_score(trace, how)
    assert oracle.hit_share() == 1.0
    assert by_mass.lookups - by_mass.hits[0] == 1, "only the first look at the needle misses"


def test_blocks_that_are_dropped_leave_room() -> None:
    trace = trace_of(np.full((6, 4), 0.25), prompt=4)
    steps = list(trace.steps)
    for index in range(1, 6):
        call = steps[index].calls[0]
        left = type(call)(0, 0, call.length, call.blocks[2:], call.masses[2:])
        steps[index] = type(steps[index])(steps[index].number, [left], steps[index].dropped)
    steps[0] = type(steps[0])(steps[0].number, steps[0].calls, np.array([0, 1]))
    trace = Trace(trace.header, trace.blocks, steps)
    score = replay(trace, policy("window"), ReplaySettings(0.5, spare=0.0))
    assert score.mass[0] == pytest.approx(0.25 * 2 + 5 * 0.5)
    assert trace.live() == 4


def test_room_that_does_not_suffice_and_settings_that_make_no_sense() -> None:
    trace = planted("chatter", 0, Sizes(prompt=64, steps=4, block=16))
    with pytest.raises(ReplayError, match="larger share"):
        replay(trace, policy("lru"), ReplaySettings(0.05))
    for wrong in ({"hbm": 0.0}, {"hbm": 1.5}, {"hbm": 0.5, "dram": -1}, {"hbm": 0.5, "bandwidth": 0}):
        with pytest.raises(ReplayError):
            ReplaySettings(**wrong)


def test_fewer_measurements_never_show_the_policy_more() -> None:
    trace = planted("needles", 3, Sizes(prompt=1024, steps=96))
    often, rarely = (replay(trace, policy("attention-mass"), ReplaySettings(0.1, refresh=k)) for k in (1, 16))
    assert often.mass_share() > rarely.mass_share()
