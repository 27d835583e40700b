from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.tiers.block_stats import BlockStats
from paceline.tiers.planner import Move, Room, plan
from paceline.tiers.settings import Tier
from tests.tiers.facts_of import facts_of

HBM, DRAM, NVME = Tier.hbm, Tier.dram, Tier.nvme


@dataclass(frozen=True)
class Case:
    facts: BlockStats
    scores: np.ndarray
    room: Room
    bandwidth: int
    hysteresis: float

    def moves(self) -> list[Move]:
        return plan(self.facts, self.scores, self.room, self.bandwidth, self.hysteresis)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    n = draw(st.integers(0, 14))
    tier = np.array(draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)), dtype=int)
    held = np.bincount(tier, minlength=3)
    extra = draw(st.tuples(*[st.integers(0, 4)] * 3))
    reserve = draw(st.tuples(*[st.integers(0, 3)] * 3))
    scores = draw(st.lists(st.integers(0, 6), min_size=n, max_size=n))
    return Case(
        facts_of(
            n,
            tier=tier,
            block=draw(st.permutations(range(100, 100 + n))),
            pinned=draw(st.lists(st.booleans(), min_size=n, max_size=n)),
        ),
        np.array(scores, dtype=float),
        Room(*(int(h + e) for h, e in zip(held, extra, strict=True)), *reserve),
        draw(st.integers(0, 12)),
        draw(st.sampled_from([0.0, 0.1, 0.5])),
    )


def carried_out(facts: BlockStats, moves: Sequence[Move]) -> dict[int, int]:
    """Where the blocks lie after so many moves, each from where it says."""
    at = dict(zip(facts.block.tolist(), facts.tier.tolist(), strict=True))
    for move in moves:
        assert at[move.block] == move.source != move.target
        at[move.block] = move.target
    return at


def held(at: dict[int, int]) -> list[int]:
    return [list(at.values()).count(tier) for tier in Tier]


@given(cases())
def test_every_prefix_fits_and_nothing_pinned_moves(case: Case) -> None:
    moves = case.moves()
    pinned = set(case.facts.block[case.facts.pinned].tolist())
    assert len(moves) <= case.bandwidth
    assert len({move.block for move in moves}) == len(moves)
    assert pinned.isdisjoint(move.block for move in moves)
    up = [move.target < move.source for move in moves]
    assert up == sorted(up), "demotions come first"
    for count in range(len(moves) + 1):
        for tier, number in enumerate(held(carried_out(case.facts, moves[:count]))):
            assert number <= case.room.slots[tier]


@given(cases())
def test_no_block_goes_up_past_a_better_one_that_could_have_gone(case: Case) -> None:
    moves = case.moves()
    score = dict(zip(case.facts.block.tolist(), case.scores.tolist(), strict=True))
    came = [move.block for move in moves if move.target is HBM]
    left_hbm = [move.block for move in moves if move.source is HBM]
    before = carried_out(case.facts, ())
    pinned = set(case.facts.block[case.facts.pinned].tolist())
    for up in came:
        assert all(score[down] <= score[up] for down in left_hbm)
        for other, tier in before.items():
            if tier != HBM and other not in pinned and other not in {move.block for move in moves}:
                assert score[other] <= score[up]


@given(cases())
def test_room_that_should_stay_free_is_not_used_up_by_promotions(case: Case) -> None:
    before = held(carried_out(case.facts, ()))
    after = held(carried_out(case.facts, case.moves()))
    for tier in (HBM, NVME):
        limit = case.room.slots[tier] - case.room.reserve[tier]
        assert after[tier] <= max(limit, before[tier])


@given(cases())
def test_it_comes_to_rest(case: Case) -> None:
    """With unchanged scores, planning and moving again and again ends in a state without moves."""
    facts = case.facts
    seen = set()
    for _ in range(200):
        moves = plan(facts, case.scores, case.room, case.bandwidth, case.hysteresis)
        if not moves:
            return
        at = carried_out(facts, moves)
        tier = np.array([at[block] for block in facts.block.tolist()])
        assert tuple(tier) not in seen, "it goes in a circle"
        seen.add(tuple(tier))
        facts = facts_of(len(facts), tier=tier, block=facts.block, pinned=facts.pinned)
    raise AssertionError("still moving after 200 plans")


@given(cases())
def test_at_rest_without_hysteresis_the_best_are_in_hbm(case: Case) -> None:
    """Where there is a free slot below to turn blocks over, and bandwidth, hbm ends up with the highest scores."""
    facts, room = case.facts, case.room
    tier = facts.tier
    n = len(facts)
    roomy = Room(room.hbm, n, n + 1, room.free_hbm, 0, 0)
    free = facts_of(n, tier=tier, block=facts.block)
    for _ in range(100):
        moves = plan(free, case.scores, roomy, 3, 0.0)
        if not moves:
            break
        at = carried_out(free, moves)
        free = facts_of(n, tier=[at[block] for block in free.block.tolist()], block=free.block)
    inside, outside = case.scores[free.tier == HBM], case.scores[free.tier != HBM]
    assert len(inside) == min(n, max(0, room.hbm - room.free_hbm))
    if len(inside) and len(outside):
        assert inside.min() >= outside.max()


def test_pressure_demotes_the_last_and_the_last_of_dram_makes_room_for_it() -> None:
    facts = facts_of(4, tier=[0, 0, 1, 1])
    moves = plan(facts, np.array([4.0, 3.0, 2.0, 1.0]), Room(2, 2, 4, free_hbm=1), 8)
    assert moves == [(3, DRAM, NVME), (1, HBM, DRAM)]


def test_a_full_house_still_exchanges_what_it_can() -> None:
    """A single free slot of dram is enough to turn blocks over, one a plan."""
    facts = facts_of(4, tier=[0, 0, 1, 1])
    moves = plan(facts, np.array([1.0, 2.0, 3.0, 4.0]), Room(2, 3), 8, hysteresis=0.0)
    assert moves == [(0, HBM, DRAM), (3, DRAM, HBM)]
    assert plan(facts, np.array([1.0, 2.0, 3.0, 4.0]), Room(2, 2), 8, hysteresis=0.0) == []


def test_hysteresis_keeps_blocks_at_the_border_where_they_are() -> None:
    tier = [0] * 10 + [1] * 10
    scores = np.concatenate([np.arange(10, 20), np.full(10, 1.0)])
    scores[10] = 10.5  # it ranks tenth, just before the last of hbm
    room = Room(10, 20)
    assert plan(facts_of(20, tier=tier), scores, room, 8, hysteresis=0.2) == []
    assert plan(facts_of(20, tier=tier), scores, room, 8, hysteresis=0.0) == [(0, HBM, DRAM), (10, DRAM, HBM)]
    scores[10] = 17.5  # and now third
    assert plan(facts_of(20, tier=tier), scores, room, 8, hysteresis=0.2) == [(0, HBM, DRAM), (10, DRAM, HBM)]


def test_what_makes_no_sense_is_refused() -> None:
    facts = facts_of(3)
    with pytest.raises(ValueError, match="hbm holds 3 blocks, but has 2 slots"):
        plan(facts, np.zeros(3), Room(2, 2), 4)
    with pytest.raises(ValueError, match="2 scores for 3 blocks"):
        plan(facts, np.zeros(2), Room(3, 0), 4)
    with pytest.raises(ValueError, match="not a number"):
        plan(facts, np.array([0.0, np.nan, 1.0]), Room(3, 0), 4)
    with pytest.raises(ValueError, match="negative"):
        Room(-1, 0)


def test_what_goes_up_leaves_its_slot_to_one_block_and_no_more() -> None:
    facts = facts_of(4, tier=[1, 2, 2, 2])
    moves = plan(facts, np.array([4.0, 3.0, 2.0, 1.0]), Room(1, 1, 3), 8)
    assert moves == [(0, DRAM, HBM), (1, NVME, DRAM)]
