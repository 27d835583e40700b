"""Attention over blocks: equal to plain attention, and to itself however the blocks are placed and split."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.kernels import paged_attention as module
from paceline.kernels.merge import merge
from paceline.kernels.paged_attention import KEPT_ROWS, Partial
from tests.kernels.blocks import Case, case, permutation

_SEEDS = st.integers(0, 2**31)


@st.composite
def cases(
    draw: st.DrawFn,
    dtype: torch.dtype = torch.float32,
    most_rows: int = 20,
    widths: tuple[int, ...] = (8, 16, 40, 64),
) -> Case:
    rows = draw(st.integers(1, most_rows))
    shared = draw(st.integers(1, 3))
    return case(
        draw(_SEEDS),
        draw(st.integers(rows, 60)),
        heads=shared * draw(st.integers(1, 3)),
        shared=shared,
        rows=rows,
        block=draw(st.sampled_from([1, 3, 4, 16])),
        width=draw(st.sampled_from(widths)),
        window=draw(st.none() | st.integers(1, 70)),
        spread=draw(st.sampled_from([0.1, 1.0, 3.0])),
        dtype=dtype,
    )


def same(one: Partial, other: Partial) -> None:
    assert torch.equal(one.out_HMD, other.out_HMD)
    assert torch.equal(one.lse_HM, other.lse_HM)


def by_blocks(given: Case, values_HMK: torch.Tensor) -> torch.Tensor:
    return values_HMK.view(*values_HMK.shape[:2], len(given.slots_N), -1)


def size_of(given: Case) -> float:
    """What an output's rounding is proportional to: a weight is off by the rounding of its score, relatively."""
    scores, (_, values) = given.scores_HMK(), given.flat()
    return (1 + float(scores.masked_fill(scores.isinf(), 0.0).abs().max())) * float(values.abs().max())


def parts_of(given: Case, order: torch.Tensor, cuts: list[int]) -> list[Case]:
    """The blocks in some order, cut into calls; some may be empty."""
    bounds = [0, *sorted(cut % (len(order) + 1) for cut in cuts), len(order)]
    return [given.some(order[low:high]) for low, high in pairwise(bounds)]


@settings(max_examples=80, deadline=None)
@given(cases(torch.float64, widths=(1, 5, 8, 64)), st.booleans())
def test_it_is_attention(given_case: Case, keep: bool) -> None:
    # The window is at least 1, so every row sees itself.
    partial = given_case.attend(keep)
    assert torch.allclose(partial.out_HMD, given_case.plain(), rtol=1e-10, atol=1e-12)
    scores = given_case.scores_HMK()
    assert torch.allclose(partial.lse_HM, scores.logsumexp(2), rtol=1e-12, atol=1e-12)
    by_block = by_blocks(given_case, scores).logsumexp(3)
    assert torch.allclose(partial.block_lse_HMN, by_block, rtol=1e-10, atol=1e-10)
    assert (partial.block_out_NHMD is not None) == keep


@settings(max_examples=40, deadline=None)
@given(cases(), st.booleans())
def test_float32_is_as_near_as_float32_can_be(given_case: Case, keep: bool) -> None:
    off = float((given_case.attend(keep).out_HMD - given_case.plain()).abs().max())
    assert off < 1e-6 * size_of(given_case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_kv_is_computed_in_float32(dtype: torch.dtype) -> None:
    narrow = case(1, 37, rows=3, dtype=dtype)
    wide = replace(
        narrow,
        q_HMD=narrow.q_HMD.float(),
        keys_SGBD=narrow.keys_SGBD.float(),
        values_SGBD=narrow.values_SGBD.float(),
    )
    assert narrow.attend().out_HMD.dtype == torch.float32
    same(narrow.attend(), wide.attend())


@settings(max_examples=60, deadline=None)
@given(cases())
def test_masses_are_shares(given_case: Case) -> None:
    partial = given_case.attend()
    weights = by_blocks(given_case, given_case.scores_HMK().softmax(2)).sum(3)
    assert torch.allclose(partial.mass_HMN.double(), weights, atol=1e-5)
    assert torch.allclose(partial.mass_HMN.sum(2), torch.ones_like(partial.lse_HM), atol=1e-5)
    assert torch.allclose(partial.mass_N, partial.mass_HMN.mean((0, 1)))


@settings(max_examples=100, deadline=None)
@given(cases(most_rows=KEPT_ROWS), _SEEDS, st.lists(st.integers(0, 99), max_size=4))
def test_any_partition_in_any_order_gives_the_same_bits(given_case: Case, seed: int, cuts: list[int]) -> None:
    whole = given_case.attend()
    order = permutation(seed, len(given_case.slots_N))
    merged = merge([part.attend() for part in parts_of(given_case, order, cuts)])
    same(whole, merged)
    assert torch.equal(whole.block_lse_HMN[..., order], merged.block_lse_HMN)
    # Merging is associative, too.
    parts = [part.attend() for part in parts_of(given_case, order, cuts)]
    same(whole, merge([merge(parts[:2]), *parts[2:]]))


@settings(max_examples=60, deadline=None)
@given(cases(widths=(1, 5, 64)), _SEEDS, st.lists(st.integers(0, 99), max_size=4))
def test_any_partition_gives_the_same_within_rounding(given_case: Case, seed: int, cuts: list[int]) -> None:
    whole = given_case.attend(keep_blocks=False)
    parts = parts_of(given_case, permutation(seed, len(given_case.slots_N)), cuts)
    merged = merge([part.attend(keep_blocks=False) for part in parts])
    assert torch.allclose(whole.out_HMD, merged.out_HMD, atol=1e-6 * size_of(given_case))
    assert torch.allclose(whole.lse_HM, merged.lse_HM, atol=2e-6, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(cases(), st.booleans(), _SEEDS)
def test_where_blocks_lie_does_not_change_a_bit(given_case: Case, keep: bool, seed: int) -> None:
    same(given_case.attend(keep), given_case.moved(seed, len(given_case.slots_N) + seed % 50).attend(keep))


@settings(max_examples=60, deadline=None)
@given(cases(), st.data())
def test_the_bits_of_a_block_do_not_depend_on_its_neighbours(given_case: Case, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(given_case.slots_N) - 1), min_size=1, unique=True))
    index = torch.tensor(chosen)
    some, whole = given_case.some(index).attend(True), given_case.attend(True)
    assert some.block_out_NHMD is not None and whole.block_out_NHMD is not None
    assert torch.equal(some.block_out_NHMD, whole.block_out_NHMD[index])
    assert torch.equal(some.block_lse_HMN, whole.block_lse_HMN[..., index])


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("rows", [1, 5])
def test_long_calls_go_piece_by_piece(monkeypatch: pytest.MonkeyPatch, keep: bool, rows: int) -> None:
    given_case = case(3, 203, rows=rows)
    whole = given_case.attend(keep)
    monkeypatch.setattr(module, "_PIECE", 1000)
    pieces = given_case.attend(keep)
    if keep:
        same(whole, pieces)
    assert torch.allclose(whole.out_HMD, pieces.out_HMD, atol=1e-6)
    assert torch.allclose(whole.block_lse_HMN, pieces.block_lse_HMN, atol=1e-6)


@pytest.mark.parametrize("keep", [True, False])
def test_rows_that_see_nothing_give_zero_and_change_nothing(keep: bool) -> None:
    given_case = case(5, 40, rows=1)
    # The first five blocks are all before the window; the last ones hold all that is seen.
    narrow = replace(given_case, window=10)
    early = narrow.some(torch.arange(5)).attend(keep)
    assert torch.equal(early.out_HMD, torch.zeros_like(early.out_HMD))
    assert torch.equal(early.lse_HM, torch.full_like(early.lse_HM, -torch.inf))
    assert float(early.mass_HMN.abs().max()) == 0
    merged = merge([early, narrow.some(torch.arange(5, 10)).attend(keep)])
    assert torch.allclose(merged.out_HMD.double(), narrow.plain(), atol=1e-6)
    empty = narrow.some(torch.arange(0)).attend(keep)
    assert float(empty.out_HMD.abs().max()) == 0 and bool((empty.lse_HM == -torch.inf).all())
    nothing = merge([early, empty])
    assert float(nothing.out_HMD.abs().max()) == 0 and bool((nothing.lse_HM == -torch.inf).all())


def test_scores_of_any_size_overflow_nowhere() -> None:
    given_case = case(6, 64, spread=300.0)
    partial = given_case.attend()
    assert float((partial.out_HMD - given_case.plain()).abs().max()) < 0.1
    assert bool(torch.isfinite(partial.lse_HM).all())


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("short", [1, 2, 3, 10])
def test_any_block_may_be_short(keep: bool, short: int) -> None:
    # Each with another number of tokens, 0 among them, and NaN behind them.
    given_case = case(10, 40, block=4)
    counts = given_case.counts_N.clone()
    counts[:short] = torch.arange(short) % 4
    keys, values = given_case.keys_SGBD.clone(), given_case.values_SGBD.clone()
    for slot, count in zip(given_case.slots_N.tolist(), counts.tolist(), strict=True):
        keys[slot, :, count:], values[slot, :, count:] = torch.nan, torch.nan
    holes = replace(given_case, counts_N=counts, keys_SGBD=keys, values_SGBD=values)
    assert torch.allclose(holes.attend(keep).out_HMD.double(), holes.plain(), atol=1e-5)


def test_queries_may_be_a_view() -> None:
    # As layers give them: `[M, H, D]` with the first two dimensions swapped.
    given_case = case(9, 40, rows=5)
    strided = replace(given_case, q_HMD=given_case.q_HMD.transpose(0, 1).contiguous().transpose(0, 1))
    assert not strided.q_HMD.is_contiguous()
    same(given_case.attend(), strided.attend())


def test_it_works_in_and_out_of_inference_mode() -> None:
    given_case = case(7, 30)
    with torch.inference_mode():
        inside = given_case.attend()
    same(inside, given_case.attend())


def test_wrong_arguments_are_refused() -> None:
    good = case(8, 20)
    with pytest.raises(ValueError, match=re.escape("H a multiple of G")):
        replace(good, q_HMD=good.q_HMD[:3]).attend()
    with pytest.raises(ValueError, match="5 slots, 4 starts and 5 counts"):
        replace(good, starts_N=good.starts_N[1:]).attend()
    with pytest.raises(ValueError, match="window is 0"):
        replace(good, window=0).attend()
    with pytest.raises(ValueError, match="nothing to merge"):
        merge([])
