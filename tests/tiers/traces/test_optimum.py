from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.tiers.policies import policy
from paceline.tiers.profile import of_use
from paceline.tiers.traces.optimum import optimum
from paceline.tiers.traces.oracle import Future, belady
from paceline.tiers.traces.replay import ReplaySettings, replay, slots_of
from paceline.tiers.traces.trace import Trace
from tests.tiers.traces.small import small_traces, trace_of


def by_hand(gain: np.ndarray, free: np.ndarray, slots: int, bandwidth: int | None, cost: float) -> float:
    """The optimum by trying every set of blocks in every gap."""
    n, gaps = gain.shape
    sets = [frozenset(some) for k in range(min(slots, n) + 1) for some in combinations(range(n), k)]
    best = {frozenset[int](): 0.0}
    for gap in range(gaps):
        after: dict[frozenset[int], float] = {}
        for inside in sets:
            for before, value in best.items():
                came = sum(not free[block, gap] for block in inside - before)
                if bandwidth is None or came <= bandwidth:
                    worth = value - cost * came + sum(gain[block, gap] for block in inside)
                    after[inside] = max(after.get(inside, -1e9), worth)
        best = after
    return max(best.values())


@settings(max_examples=60)
@given(st.data())
def test_the_flow_finds_what_trying_everything_finds(data: st.DataObject) -> None:
    n, gaps = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    cells = st.lists(st.integers(0, 6), min_size=n * gaps, max_size=n * gaps)
    gain = np.array(data.draw(cells), dtype=float).reshape(n, gaps)
    free = np.array(data.draw(cells)).reshape(n, gaps) > 4
    slots = data.draw(st.integers(1, 3))
    bandwidth = data.draw(st.one_of(st.none(), st.integers(0, 2)))
    cost = data.draw(st.sampled_from([0.0, 1.0, 2.5]))
    found = optimum(gain, free, slots, bandwidth, cost)
    assert found == pytest.approx(by_hand(gain, free, slots, bandwidth, cost))


@given(small_traces(), st.integers(1, 4))
def test_belady_is_the_optimum_where_its_conditions_hold(trace: Trace, slots: int) -> None:
    """Blocks of use gain 1; they may stay for nothing after a use or after they were made, and cost 1 else."""
    n, steps = len(trace.blocks), len(trace.steps)
    used = np.zeros((n, steps), dtype=bool)
    made = np.full(n, steps)
    for index, step in enumerate(trace.steps):
        for call in step.calls:
            used[call.blocks[of_use(call.masses)], index] = True
            made[call.blocks] = np.minimum(made[call.blocks], index)
    born = made[:, None] == np.arange(steps)
    least = belady(trace, slots)
    saved = 0.0
    if steps > 1:
        saved = optimum(used[:, 1:] & ~born[:, 1:], (used | born)[:, :-1], slots, cost=1.0)
    at_birth = int((used & born).sum())
    assert least.lookups == used.sum()
    assert least.misses == least.lookups - at_birth - round(saved)


@given(small_traces(), st.floats(0.2, 1), st.integers(1, 3), st.sampled_from([1, 4]))
def test_no_replay_gains_more_than_the_optimum(trace: Trace, hbm: float, bandwidth: int, lookahead: int) -> None:
    n, steps = len(trace.blocks), len(trace.steps)
    masses = np.zeros((n, steps))
    for index, step in enumerate(trace.steps):
        masses[: len(step.calls[0].blocks), index] = step.calls[0].masses
    trace = trace_of(masses.T, prompt=n)
    how = ReplaySettings(hbm, bandwidth=bandwidth, hysteresis=0.0, spare=0.0)
    slots = slots_of(trace, how)[0]
    first = float(np.sort(masses[:, 0])[::-1][:slots].sum())
    free = np.zeros((n, max(steps - 1, 0)), dtype=bool)
    if steps > 1:
        free[:, 0] = True  # wherever the prompt was laid down
    most = first + (optimum(masses[:, 1:], free, slots, bandwidth) if steps > 1 else 0.0)
    for by in (policy("oracle", future=Future(trace, lookahead)), policy("attention-mass"), policy("lru")):
        assert replay(trace, by, how).mass[0] <= most + 1e-9


@given(small_traces(), st.integers(1, 4))
def test_without_limits_the_optimum_takes_the_best_of_every_gap(trace: Trace, slots: int) -> None:
    masses = np.zeros((len(trace.blocks), len(trace.steps)))
    for index, step in enumerate(trace.steps):
        masses[: len(step.calls[0].blocks), index] = step.calls[0].masses
    best = np.sort(masses, axis=0)[::-1][:slots].sum()
    assert optimum(masses, np.zeros(masses.shape, dtype=bool), slots) == pytest.approx(best)


def test_a_gain_is_not_negative() -> None:
    with pytest.raises(ValueError, match="negative"):
        optimum(np.array([[-1.0]]), np.zeros((1, 1), dtype=bool), 1)
