"""Bounds are bounds: for any keys, of exact scores and of those that a float32 kernel computes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paceline.kernels.bounds import log_sum_bounds, score_bounds
from paceline.kernels.key_codes import KeyCodes, coded_log_sum_bounds, encode
from paceline.kernels.paged_attention import paged_attention
from paceline.kernels.summaries import Summaries, summarise
from tests.kernels.blocks import randn
from tests.kernels.keys import KINDS, keys_of, queries_of


@st.composite
def given_keys(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, how many of each block are valid, and queries."""
    kind, seed = draw(st.sampled_from(KINDS)), draw(st.integers(0, 2**20))
    count, shared = draw(st.integers(1, 6)), draw(st.integers(1, 2))
    block, width = draw(st.sampled_from([1, 4, 16])), draw(st.sampled_from([2, 16, 64]))
    keys = keys_of(kind, seed, count, shared, block, width)
    counts = torch.tensor(draw(st.lists(st.integers(0, block), min_size=count, max_size=count)))
    return keys, counts, queries_of(kind, seed, keys, draw(st.integers(1, 3)), draw(st.integers(1, 3)))


def scores_of(q_HMD: Tensor, keys_NGBD: Tensor, counts_N: Tensor, scale: float) -> Tensor:
    """Exact scores `[H, M, N, B]`, NaN where no key is."""
    group = q_HMD.shape[0] // keys_NGBD.shape[1]
    keys = keys_NGBD.double().repeat_interleave(group, dim=1)
    scores = torch.einsum("hmd,nhbd->hmnb", q_HMD.double(), keys) * scale
    unused = torch.arange(keys.shape[2]) >= counts_N[:, None]
    return scores.masked_fill(unused, torch.nan)


@settings(max_examples=150, deadline=None)
@given(given_keys(), st.sampled_from([1.0, 0.125, -0.5]))
def test_no_score_is_outside(given_case: tuple[Tensor, Tensor, Tensor], scale: float) -> None:
    keys, counts, q = given_case
    bounds = score_bounds(q, summarise(keys, counts), scale)
    scores = scores_of(q, keys, counts, scale)
    valid = ~scores.isnan()
    assert bool((scores <= bounds.upper_HMN[..., None].double())[valid].all())
    assert bool((scores >= bounds.lower_HMN[..., None].double())[valid].all())
    # And what float32 makes of them.
    group = q.shape[0] // keys.shape[1]
    narrow = torch.einsum("hmd,nhbd->hmnb", q * scale, keys.repeat_interleave(group, dim=1))
    assert bool((narrow <= bounds.upper_HMN[..., None])[valid].all())
    assert bool((narrow >= bounds.lower_HMN[..., None])[valid].all())
    mean = scores.nanmean(3)
    off = (mean - bounds.mean_HMN.double()).abs() <= bounds.slack_HMN.double()
    assert bool(off[:, :, counts > 0].all())


@settings(max_examples=150, deadline=None)
@given(given_keys(), st.sampled_from([0, 8, 4, 2]))
def test_no_log_sum_is_outside(given_case: tuple[Tensor, Tensor, Tensor], bits: int) -> None:
    keys, counts, q = given_case
    scale = q.shape[2] ** -0.5
    if bits and keys.shape[3] * bits % 8 == 0:
        bounds = coded_log_sum_bounds(q, encode(keys, counts, bits), scale)
    else:
        bounds = log_sum_bounds(q, summarise(keys, counts), scale)
    exact = scores_of(q, keys, counts, scale).nan_to_num(nan=-torch.inf).logsumexp(3)
    assert bool((exact <= bounds.upper_HMN.double()).all())
    assert bool((exact >= bounds.lower_HMN.double()).all())
    number = torch.arange(len(keys))
    seen = paged_attention(q, keys, keys, number, number * 0, counts, 10**6, scale).block_lse_HMN
    assert bool((seen <= bounds.upper_HMN).all())
    assert bool((seen >= bounds.lower_HMN).all())


def test_bounds_are_tight_where_they_can_be() -> None:
    # Of equal keys everything is known; a ball beats the box around it, and a box beats the ball around it.
    keys = keys_of("equal", 5, 3, 2, 16, 32)
    q = queries_of("equal", 5, keys, 2, 2)
    counts = torch.full((3,), 16)
    bounds = log_sum_bounds(q, summarise(keys, counts), 0.2)
    assert float((bounds.upper_HMN - bounds.lower_HMN).max()) < 0.01
    ball = randn(1, 1, 1, 64, 32)
    ball /= ball.norm(dim=3, keepdim=True)
    sharp = torch.zeros(1, 1, 32)
    sharp[..., 0] = 1.0
    flat = torch.full((1, 1, 32), 32**-0.5)
    summaries = summarise(ball, torch.tensor([64]))
    assert float(score_bounds(flat, summaries, 1.0).upper_HMN) < 1.3
    box = torch.zeros(1, 1, 2, 32)
    box[..., 1, 1:] = 100.0
    assert float(score_bounds(sharp, summarise(box, torch.tensor([2])), 1.0).upper_HMN) < 0.01


@pytest.mark.parametrize("coded", [False, True])
def test_infinite_keys_have_infinite_bounds(coded: bool) -> None:
    keys = randn(3, 2, 1, 4, 8)
    keys[1, 0, 2, 3], keys[1, 0, 1, 3] = torch.inf, -torch.inf
    q, counts = randn(4, 2, 1, 8), torch.tensor([4, 4])
    summary, codes = summarise(keys, counts), encode(keys, counts, 4)
    bounds = coded_log_sum_bounds(q, codes, 1.0) if coded else log_sum_bounds(q, summary, 1.0)
    assert bool(torch.isfinite(bounds.upper_HMN[..., 0]).all()) and bool(torch.isfinite(bounds.lower_HMN[..., 0]).all())
    assert bool((bounds.upper_HMN[..., 1] == torch.inf).all()) and bool((bounds.lower_HMN[..., 1] == -torch.inf).all())


def test_summaries_ignore_what_is_not_valid() -> None:
    keys, counts = randn(5, 3, 2, 4, 8), torch.tensor([4, 2, 0])
    clean = summarise(keys, counts)
    dirty = keys.clone()
    dirty[1, :, 2:], dirty[2] = torch.nan, torch.inf
    other = summarise(dirty, counts)
    for name in ("minimum_NGD", "maximum_NGD", "mean_NGD", "radius_NG", "reach_NG", "count_N"):
        assert torch.equal(getattr(clean, name), getattr(other, name))
    assert clean.count_N.tolist() == [4, 2, 0]
    assert torch.allclose(clean.mean_NGD[1], keys[1, :, :2].mean(1))
    assert torch.equal(clean.maximum_NGD[0], keys[0].amax(1)) and torch.equal(clean.minimum_NGD[0], keys[0].amin(1))
    assert float(clean.radius_NG[2].max()) == 0


def test_summaries_are_kept_by_slot() -> None:
    table = Summaries.empty(6, 2, 8)
    keys, counts = randn(6, 3, 2, 4, 8), torch.tensor([4, 3, 1])
    fresh = summarise(keys, counts)
    table.put(torch.tensor([5, 0, 2]), fresh)
    back = table.take(torch.tensor([0, 2, 5, 1]))
    assert back.count_N.tolist() == [3, 1, 4, 0] and len(back) == 4
    assert torch.equal(back.mean_NGD[:3], fresh.mean_NGD[torch.tensor([1, 2, 0])])
    joined = Summaries.cat([fresh.take(torch.tensor([0])), fresh.take(torch.tensor([1, 2]))])
    assert torch.equal(joined.radius_NG, fresh.radius_NG)
    assert table.nbytes == 6 * (3 * 2 * 8 + 2 * 2 + 1) * 4
    with pytest.raises(ValueError, match="no summaries"):
        Summaries.cat([])


def test_codes_are_closer_the_more_bits_they_have() -> None:
    keys = keys_of("iid", 8, 6, 2, 16, 32)
    q, counts = queries_of("iid", 8, keys, 2, 1), torch.full((6,), 16)
    bounds = [coded_log_sum_bounds(q, encode(keys, counts, bits), 0.2) for bits in (8, 4, 2)]
    gaps = [float((bound.upper_HMN - bound.lower_HMN).mean()) for bound in bounds]
    summary = log_sum_bounds(q, summarise(keys, counts), 0.2)
    assert 10 * gaps[0] < gaps[1] < gaps[2] / 3
    assert gaps[1] < 0.5 * float((summary.upper_HMN - summary.lower_HMN).mean())


def test_codes_are_kept_by_slot() -> None:
    table = KeyCodes.empty(6, 2, 4, 8, 4)
    keys, counts = randn(6, 3, 2, 4, 8), torch.tensor([4, 3, 1])
    keys[1, :, 3:] = torch.nan
    fresh = encode(keys, counts, 4)
    table.put(torch.tensor([5, 0, 2]), fresh)
    back = KeyCodes.cat([table.take(torch.tensor([5])), table.take(torch.tensor([0, 2, 1]))])
    assert back.count_N.tolist() == [4, 3, 1, 0] and len(back) == 4
    q = randn(7, 2, 1, 8)
    found, wanted = coded_log_sum_bounds(q, back, 1.0), coded_log_sum_bounds(q, fresh, 1.0)
    assert torch.equal(found.upper_HMN[..., :3], wanted.upper_HMN)
    assert bool((found.upper_HMN[..., 3] == -torch.inf).all())
    assert table.nbytes == 2 * fresh.nbytes
    with pytest.raises(ValueError, match="no key codes"):
        KeyCodes.cat([])
