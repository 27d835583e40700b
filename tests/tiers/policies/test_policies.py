from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.tiers.block_stats import BlockStats
from paceline.tiers.policies import ONLINE, POLICIES, policy
from paceline.tiers.policies.slab import Slab
from tests.tiers.facts_of import facts_of


def best(scores: np.ndarray, count: int) -> set[int]:
    return set(np.argsort(-scores, kind="stable")[:count].tolist())


@pytest.mark.parametrize("name", ONLINE)
@given(n=st.integers(0, 20), data=st.data())
def test_every_policy_scores_every_block_by_what_it_is_and_not_by_its_row(
    name: str, n: int, data: st.DataObject
) -> None:
    ints = st.lists(st.integers(0, 9), min_size=n, max_size=n)
    columns = {
        "session": data.draw(ints),
        "layer": data.draw(ints),
        "mass": np.array(data.draw(ints)) / 9,
        "used": data.draw(ints),
        "place": np.array(data.draw(ints), dtype=int) - 1,
        "start": np.arange(n),
    }
    scores = policy(name).keep(facts_of(n, **columns), 10)
    assert scores.shape == (n,) and scores.dtype == np.float64 and not np.isnan(scores).any()
    order = np.array(data.draw(st.permutations(range(n))), dtype=int)
    turned = {key: np.asarray(value)[order] for key, value in columns.items()}
    turned["length"] = np.full(n, n - 1 + 16)
    assert np.array_equal(policy(name).keep(facts_of(n, **turned), 10), scores[order])


def test_lru_keeps_what_was_used_last() -> None:
    assert best(policy("lru").keep(facts_of(4, used=[5, 9, 7, 1]), 10), 2) == {1, 2}


def test_window_keeps_sinks_and_the_end_of_every_session() -> None:
    facts = facts_of(
        8, session=[0] * 4 + [1] * 4, start=[0, 16, 32, 48] * 2, length=[64] * 4 + [48] * 4, sink=[1, 0, 0, 0] * 2
    )
    # Session 1 has not written its last block yet, which is why that is the nearest of all.
    assert best(policy("window").keep(facts, 10), 5) == {0, 4, 3, 7, 6}


def test_heavy_hitter_keeps_the_latest_and_the_largest_sums() -> None:
    facts = facts_of(6, total=[9, 1, 8, 2, 0, 0])
    assert best(policy("heavy-hitter", recent=32).keep(facts, 10), 4) == {5, 4, 0, 2}
    assert best(policy("heavy-hitter", recent=0).keep(facts, 10), 3) == {0, 2, 3}


def test_attention_mass_keeps_the_largest_mean() -> None:
    facts = facts_of(4, mass=[0.1, 0.4, 0.2, 0.3], total=[9, 0, 0, 0], seen=[1] * 4)
    assert best(policy("attention-mass").keep(facts, 10), 2) == {1, 3}


def test_attention_mass_takes_what_was_never_measured_for_local() -> None:
    facts = facts_of(100, mass=[0.1] * 100, seen=[1] * 50 + [0] * 50, sink=[0] * 60 + [1] + [0] * 39)
    scores = policy("attention-mass").keep(facts, 10)
    assert scores[99] == 0.5 and scores[60] == 1.0
    assert (np.diff(scores[61:]) > 0).all() and scores[50] < scores[49] < scores[95]


def slabs(frames: int, used: dict[int, int]) -> BlockStats:
    """Frames of 3 by 3 slabs, each used when it was made, some again later."""
    start = np.repeat(np.arange(frames), 9)
    columns = {"start": start, "place": np.tile(np.arange(9), frames), "length": np.full(frames * 9, frames)}
    steps = start * 10
    for block, step in used.items():
        steps[block] = step
    return facts_of(frames * 9, used=steps, **columns)


def test_slab_drops_old_frames_first_and_their_periphery_before_their_middle() -> None:
    scores = policy("slab", columns=3, reach=0).keep(slabs(4, {}), 100)
    by_frame = scores.reshape(4, 9)
    assert (by_frame[1:].min(axis=1) > by_frame[:-1].max(axis=1)).all()
    assert (by_frame[:, 4] > np.delete(by_frame, 4, axis=1).max(axis=1)).all()


def test_slab_draws_neighbours_of_what_is_recalled_and_nobody_else() -> None:
    plain = policy("slab", columns=3).keep(slabs(20, {}), 1000)
    recalled = 5 * 9 + 2  # the upper right corner of frame 5
    raised = np.flatnonzero(policy("slab", columns=3).keep(slabs(20, {recalled: 900}), 1000) > plain)
    neighbours = {frame * 9 + place for frame in (4, 5, 6) for place in (1, 2, 4, 5)}
    assert set(raised.tolist()) == neighbours
    # The right end of one row is no neighbour of the left end of the next, nor is another layer or session.
    other = facts_of(2, start=[5, 5], place=[2, 3], used=[900, 0])
    assert policy("slab", columns=3).keep(other, 1000)[1] < 1
    for column in ("layer", "session"):
        other = facts_of(2, start=[5, 6], place=[2, 2], used=[900, 0], **{column: [0, 1]})
        assert policy("slab", columns=3).keep(other, 1000)[1] < 1


@given(
    cells=st.lists(st.tuples(*[st.integers(0, most) for most in (1, 1, 6, 5)], st.integers(0, 99)), min_size=1),
    reach=st.integers(0, 2),
)
def test_slab_finds_the_same_neighbours_either_way(cells: list[tuple[int, ...]], reach: int) -> None:
    session, layer, start, place, used = np.array(cells).T
    facts = facts_of(len(cells), session=session, layer=layer, start=start, place=place, used=used)
    by = Slab(columns=2, reach=reach, toll=3.0)
    dense = by.keep(facts, 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("paceline.tiers.policies.slab._SPARSE", 0)
        assert np.array_equal(by.keep(facts, 100), dense)


def test_the_oracle_ranks_by_the_future_it_was_given() -> None:
    oracle = policy("oracle", future=lambda blocks, step: blocks * 2.0 + step)
    assert oracle.keep(facts_of(3, block=[7, 1, 4]), 5).tolist() == [19.0, 7.0, 13.0]


def test_names() -> None:
    assert set(POLICIES.names()) == {*ONLINE, "oracle"} and "oracle" not in ONLINE
    assert [policy(name).name for name in ONLINE] == list(ONLINE)
    with pytest.raises(ValueError, match=r"no policy 'mru'; there are attention-mass, heavy-hitter, lru, window"):
        policy("mru")
    with pytest.raises(ValueError, match=r"policy lru: .*depth"):
        policy("lru", depth=3)
