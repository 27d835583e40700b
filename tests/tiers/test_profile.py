from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.tiers.profile import Profile

_masses = st.lists(st.floats(0, 1), min_size=1, max_size=6)


def ids(*blocks: int) -> np.ndarray:
    return np.array(blocks, dtype=np.int64)


@given(
    decay=st.floats(0, 0.99),
    calls=st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1)), min_size=1, max_size=12),
    more=st.integers(0, 20),
)
def test_mass_is_the_weighted_mean_of_what_was_recorded(
    decay: float, calls: list[tuple[int, float]], more: int
) -> None:
    profile = Profile(decay, blocks=1)
    profile.add(ids(more), 5)
    step, steps = 5, []
    for ahead, mass in calls:
        step += ahead
        steps.append(step)
        profile.record(step, ids(more), np.array([mass]))
    weights = np.array([decay ** float(step - then) for then in steps])
    masses = np.array([mass for _, mass in calls])
    seen = profile.of(ids(more))
    assert seen.mass[0] == pytest.approx(float(weights @ masses / weights.sum()), abs=1e-12)
    assert seen.total[0] == pytest.approx(masses.sum())
    assert (seen.seen[0], seen.read[0]) == (len(calls), step)


@given(_masses)
def test_used_is_what_had_more_than_the_mean(masses: list[float]) -> None:
    profile = Profile()
    blocks = np.arange(len(masses))
    profile.add(blocks, 1)
    profile.record(9, blocks, np.array(masses))
    used = profile.of(blocks).used
    mean = sum(masses) / len(masses)
    for mass, step in zip(masses, used.tolist(), strict=True):
        assert step == (9 if mass > mean * 1.001 else 1) or mean <= mass <= mean * 1.001 or mass == pytest.approx(mean)
    assert (used == 9).sum() < len(masses), "not all are above their mean"


def test_a_waiting_session_is_not_forgotten_and_an_id_used_again_is() -> None:
    profile = Profile(0.5)
    profile.add(ids(0, 1), 0)
    profile.record(0, ids(0, 1), np.array([0.75, 0.25]))
    profile.record(50, ids(1), np.array([0.5]))
    assert profile.of(ids(0)).mass[0] == 0.75
    profile.add(ids(0), 60)
    seen = profile.of(ids(0))
    assert (seen.mass[0], seen.total[0], seen.seen[0], seen.used[0], seen.read[0]) == (0, 0, 0, 60, 60)
    profile.use(ids(0), 61)
    profile.touch(62, ids(0))
    seen = profile.of(ids(0))
    assert (seen.used[0], seen.read[0]) == (61, 62)


def test_what_is_no_mass_is_refused() -> None:
    profile = Profile()
    for masses, match in (([0.5], "1 masses for 2"), ([0.5, -0.1], "negative"), ([0.5, np.nan], "no number")):
        with pytest.raises(ValueError, match=match):
            profile.record(0, ids(0, 1), np.array(masses))
    with pytest.raises(ValueError, match="decay"):
        Profile(1.0)
