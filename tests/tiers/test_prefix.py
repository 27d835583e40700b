from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.tiers.prefix import PrefixIndex, chain
from tests.faults.tiers import LAYOUT, Session
from tests.tiers.managers import manager_of


def test_a_key_depends_on_all_before_it() -> None:
    assert chain([b"a", b"b"])[1] != chain([b"c", b"b"])[1]
    assert chain([b"a", b"b", b"c"])[:2] == chain([b"a", b"b"])
    assert chain([b"ab"]) != chain([b"a", b"b"])[1:]


def test_a_prompt_is_computed_once_and_held_once() -> None:
    with manager_of(64, layout=LAYOUT) as manager:
        index = PrefixIndex(manager)
        first = Session(manager, 1)
        first.forward(13)
        index.remember_tokens(first.kv, range(100, 113))
        held = len(manager.pool)
        second = Session(manager, 1)
        second.kv = index.adopt_tokens(range(100, 120))
        assert second.kv.length == 12
        assert len(manager.pool) == held
        second.forward(8)
        first.forward(2)
        # The last token is always left to compute, and another prompt has nothing in common.
        assert index.adopt_tokens(range(100, 112)).length == 8
        assert index.adopt_tokens(range(101, 120)).length == 0
        assert (index.hits, index.lookups) == (3 + 2, 4 + 2 + 4)
        first.kv.close()
        second.forward(1)


def test_who_writes_gets_a_copy() -> None:
    with manager_of(64, layout=LAYOUT) as manager:
        index = PrefixIndex(manager)
        first = Session(manager, 1)
        first.forward(12)
        index.remember_tokens(first.kv, range(12))
        other = Session(manager, 2)
        other.kv = index.adopt_tokens(range(20))
        other.kv.length = 6
        other.keys[:, :, :6], other.values[:, :, :6] = first.keys[:, :, :6], first.values[:, :, :6]
        other.forward(9)
        first.forward(1)


def test_a_lost_block_is_not_given_to_anybody() -> None:
    with manager_of(64, layout=LAYOUT) as manager:
        index = PrefixIndex(manager)
        first = Session(manager, 1)
        first.forward(12)
        index.remember_tokens(first.kv, range(12))
        manager.pool.lost[first.kv.blocks(1)[1]] = True
        assert index.adopt_tokens(range(12)).length == 4
        assert len(index) == 2


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8), most=st.integers(0, 6))
def test_what_is_kept_is_bounded_and_goes_where_room_is_needed(lengths: list[int], most: int) -> None:
    with manager_of(24, layout=LAYOUT) as manager:
        index = PrefixIndex(manager, most)
        for seed, length in enumerate(lengths):
            session = Session(manager, seed)
            session.forward(length)
            index.remember_tokens(session.kv, range(1000 * seed, 1000 * seed + length))
            session.kv.close()
            assert len(index) <= most
        session = Session(manager, 99)
        session.forward(48)
        assert len(index) == 0
        index.clear()
        session.kv.close()
        assert len(manager.pool) == 0
