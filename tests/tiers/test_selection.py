"""Certified reading: what is left out never has more mass than was allowed, whatever the keys."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from paceline.kernels.bounds import LogSumBounds, log_sum_bounds
from paceline.kernels.merge import merge
from paceline.kernels.paged_attention import Partial, paged_attention
from paceline.kernels.summaries import summarise
from paceline.tiers.selection import Selection, certified, profiled, prove
from tests.kernels.keys import KINDS, keys_of, queries_of


def attend(q_HMD: Tensor, keys_NGBD: Tensor, which: NDArray[np.int64]) -> Partial:
    index = torch.from_numpy(which)
    count, block = len(index), keys_NGBD.shape[2]
    full = torch.full((count,), block)
    return paged_attention(
        q_HMD, keys_NGBD, keys_NGBD, index, index * block, full, 10**6, q_HMD.shape[2] ** -0.5, keep_blocks=True
    )


def masses(q_HMD: Tensor, keys_NGBD: Tensor) -> Tensor:
    """Attention mass `[H, M, N]` of every block, summed up in float64."""
    return attend(q_HMD, keys_NGBD, np.arange(len(keys_NGBD))).block_lse_HMN.double().softmax(2)


def in_rounds(
    q_HMD: Tensor, keys_NGBD: Tensor, hot: int, eps: float, most: int | None
) -> tuple[NDArray[np.int64], Selection, int]:
    """Which cold blocks were left out, the last round, and how many rounds there were."""
    count, block = keys_NGBD.shape[0], keys_NGBD.shape[2]
    partial = attend(q_HMD, keys_NGBD, np.arange(hot))
    counts = torch.full((count - hot,), block)
    bounds = log_sum_bounds(q_HMD, summarise(keys_NGBD[hot:], counts), q_HMD.shape[2] ** -0.5)
    done = np.zeros(count - hot, dtype=bool)
    for rounds in range(1, count + 2):
        selection = prove(bounds, partial.lse_HM, eps, done_N=done, most=most)
        assert not (selection.read_N & done).any()
        if len(selection.read):
            partial = merge([partial, attend(q_HMD, keys_NGBD, hot + selection.read)])
            done |= selection.read_N
        if selection.enough:
            return np.flatnonzero(~done) + hot, selection, rounds
        assert most is not None and len(selection.read) == most
    raise AssertionError("no end of rounds")


@st.composite
def steps(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    kind, seed = draw(st.sampled_from(KINDS)), draw(st.integers(0, 2**20))
    count, shared = draw(st.integers(1, 12)), draw(st.integers(1, 2))
    keys = keys_of(kind, seed, count, shared, draw(st.sampled_from([1, 4, 16])), draw(st.sampled_from([4, 32])))
    q = queries_of(kind, seed, keys, draw(st.integers(1, 2)), draw(st.integers(1, 3)))
    return keys, q, draw(st.integers(0, count))


@settings(max_examples=200, deadline=None)
@given(steps(), st.sampled_from([0.0, 1e-6, 0.01, 0.1, 0.5]), st.sampled_from([None, 1, 3]), st.booleans())
def test_omitted_mass_stays_below_epsilon(
    step: tuple[Tensor, Tensor, int], eps: float, most: int | None, exact: bool
) -> None:
    # Of the exact scores, and of those of a float32 kernel, where keys of extreme norms round to other masses.
    keys, q, hot = step
    if exact:
        keys, q = keys.double(), q.double()
    omitted, selection, _ = in_rounds(q, keys, hot, eps, most)
    assert 0 <= selection.bound <= eps
    left_out = masses(q, keys)[..., torch.from_numpy(omitted)].sum(2)
    assert float(left_out.max()) <= selection.bound * (1 + 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_steps_of_all_kinds(kind: str) -> None:
    # 10 kinds * 20 steps * 8 heads, at three epsilons.
    for seed in range(20):
        keys = keys_of(kind, seed, 32, 4, 16, 32)
        q = queries_of(kind, seed, keys, 2, 1)
        if seed % 2:
            # Looks at one of the last keys, as most heads do.
            q[:, 0] = keys[:2, :, -1].transpose(0, 1).reshape(8, 32) * (8.0 / keys[0, :, -1].norm(dim=1).max())
        for eps in (0.001, 0.02, 0.2):
            omitted, selection, _ = in_rounds(q, keys, 4, eps, 4)
            left_out = float(masses(q, keys)[..., torch.from_numpy(omitted)].sum(2).max())
            assert left_out <= selection.bound * (1 + 1e-6) <= eps * (1 + 1e-6)


def test_a_peaked_step_reads_little_and_a_flat_one_all() -> None:
    keys = keys_of("clustered", 4, 64, 2, 16, 32)
    looking = keys[0, :, 3]
    omitted, _, _ = in_rounds(looking.view(2, 1, 32), keys, 1, 0.01, None)
    assert len(omitted) > 50
    flat = torch.zeros(2, 1, 32)
    omitted, selection, _ = in_rounds(flat, keys, 1, 0.01, None)
    assert len(omitted) == 0 and selection.bound == 0


def test_rounds_find_a_needle_and_stop() -> None:
    # The mass is in a cold block: read it, and hardly anything is left to read.
    keys = keys_of("outlier", 7, 64, 1, 16, 64)
    q = keys[40, 0, 5].view(1, 1, 64)
    omitted, _, rounds = in_rounds(q, keys, 2, 0.01, 4)
    at_once, _, _ = in_rounds(q, keys, 2, 0.01, None)
    assert 40 not in omitted and 40 not in at_once
    assert rounds > 1 and len(omitted) > 50 and len(omitted) > 5 * len(at_once)


def test_one_round_is_what_prove_says() -> None:
    keys = keys_of("clustered", 3, 16, 2, 8, 16)
    q = queries_of("clustered", 3, keys, 2, 1)
    hot = attend(q, keys, np.arange(4))
    summaries = summarise(keys[4:], torch.full((12,), 8))
    bounds = log_sum_bounds(q, summaries, 0.25)
    one, other = certified(q, summaries, hot.lse_HM, 0.05, 0.25), prove(bounds, hot.lse_HM, 0.05)
    assert np.array_equal(one.read_N, other.read_N) and one.bound == other.bound


def test_blocks_seen_in_part_prove_nothing_for_others() -> None:
    # One block's lower bound would excuse the other; where not every row sees all of it, it must not.
    upper, lower = torch.tensor([[[5.0, 0.0]]]), torch.tensor([[[5.0, 0.0]]])
    bounds, hot = LogSumBounds(lower, upper), torch.full((1, 1), -torch.inf)
    assert prove(bounds, hot, 0.1).read.tolist() == [0]
    assert prove(bounds, hot, 0.1, whole_N=torch.tensor([False, True])).read.tolist() == [0, 1]


def test_every_head_counts() -> None:
    # The second head has its mass where the first has none.
    upper = torch.tensor([[[0.0, -20.0]], [[-20.0, 0.0]]])
    bounds, hot = LogSumBounds(upper - 1, upper), torch.full((2, 1), 3.0)
    assert prove(bounds, hot, 0.01).omitted == 0
    alone = LogSumBounds(upper[:1] - 1, upper[:1])
    assert prove(alone, hot[:1], 0.01).read.tolist() == [0]


def test_what_can_not_be_bounded_is_read() -> None:
    upper = torch.tensor([[[torch.inf, 3.0, 900.0]]])
    bounds = LogSumBounds(torch.full_like(upper, -torch.inf), upper)
    selection = prove(bounds, torch.full((1, 1), -torch.inf), 0.3)
    assert selection.read.tolist() == [0, 1, 2] and selection.bound == 0 and selection.enough
    none = prove(LogSumBounds(upper[..., :0], upper[..., :0]), torch.zeros(1, 1), 0.3)
    assert none.omitted == 0 and none.enough
    with pytest.raises(ValueError, match="eps is 1"):
        prove(bounds, torch.zeros(1, 1), 1.0)


@given(st.lists(st.floats(0, 1) | st.just(float("inf")), max_size=20), st.floats(0, 1))
def test_the_profile_leaves_out_as_many_as_the_floor_allows(mass: list[float], floor: float) -> None:
    mass_N = np.array(mass, dtype=np.float64)
    selection = profiled(mass_N, floor)
    left = mass_N[~selection.read_N]
    assert selection.bound <= floor and np.isclose(left.sum(), selection.bound)
    # The next one would have been too many.
    if selection.read_N.any():
        assert left.sum() + mass_N[selection.read_N].min() > floor * (1 - 1e-9)
        assert not len(left) or mass_N[selection.read_N].min() >= left.max()
    assert np.isfinite(left).all()
