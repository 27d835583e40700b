"""Copies of blocks between arenas, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.kernels import moves
from paceline.kernels.moves import copy_blocks
from tests.kernels.blocks import randn

_SLOTS = st.lists(st.integers(0, 11), max_size=12, unique=True)


@settings(max_examples=60, deadline=None)
@given(_SLOTS, _SLOTS, st.sampled_from([torch.float32, torch.bfloat16]))
def test_blocks_arrive_and_others_stay(source: list[int], target: list[int], dtype: torch.dtype) -> None:
    count = min(len(source), len(target))
    taken, placed = np.array(source[:count], dtype=np.int64), np.array(target[:count], dtype=np.int64)
    held, into = randn(1, 12, 2, 3, 4, dtype=dtype), randn(2, 12, 2, 3, 4, dtype=dtype)
    held[0, 0, 0, 0] = torch.nan
    before = into.clone()
    copy_blocks(held, taken, into, placed)
    assert torch.equal(into[placed].nan_to_num(7.0), held[taken].nan_to_num(7.0))
    others = np.setdiff1d(np.arange(12), placed)
    assert torch.equal(into[others], before[others])


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=30))
def test_runs_cover_every_slot_once(pairs: list[tuple[int, int]]) -> None:
    source, target = (np.array(side, dtype=np.int64) for side in zip(*pairs, strict=True))
    found = [(first + i, place + i) for first, place, count in moves._runs(source, target) for i in range(count)]
    assert found == pairs


def test_a_run_of_neighbours_is_one() -> None:
    assert moves._runs(np.arange(3, 9), np.arange(5, 11)) == [(3, 5, 6)]
    assert moves._runs(np.array([1, 2, 3, 7]), np.array([4, 5, 9, 10])) == [(1, 4, 2), (3, 9, 1), (7, 10, 1)]


def test_blocks_that_do_not_fit_are_refused() -> None:
    held, slots = randn(1, 4, 2, 3, 4), np.arange(2)
    with pytest.raises(ValueError, match="can't be copied"):
        copy_blocks(held, slots, held.half(), slots)
    with pytest.raises(ValueError, match="can't be copied"):
        copy_blocks(held, slots, randn(1, 4, 2, 3, 5), slots)
    with pytest.raises(ValueError, match="2 slots to copy from, but 3"):
        copy_blocks(held, slots, held.clone(), np.arange(3))
