"""Keyed uniforms and Gumbel noise: keys, equal bits on both paths, and the law."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.kernels import gumbel as module
from paceline.kernels.gumbel import DrawKey, GumbelRows, gumbel, uniforms
from paceline.kernels.philox import Purpose, words

_KEYS = st.builds(
    DrawKey, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**24 - 1)
)


@settings(max_examples=50, deadline=None)
@given(st.lists(_KEYS, min_size=1, max_size=12), st.sampled_from(list(Purpose)))
def test_a_uniform_does_not_depend_on_what_is_drawn_beside_it(keys: list[DrawKey], purpose: Purpose) -> None:
    # One key at a time runs in Python's integers, many in numpy.
    alone = torch.cat([uniforms([key], purpose) for key in keys])
    assert torch.equal(uniforms(keys * 8, purpose), alone.repeat(8))
    assert float(alone.min()) > 0 and float(alone.max()) < 1


def test_a_uniform_is_made_of_the_words_of_philox() -> None:
    # Epoch and branch 0 and a position below 2**32 make the counter that `words` has.
    low, high = words(123, 45, Purpose.draft, 2).tolist()
    assert float(uniforms([DrawKey(123, 45)], Purpose.draft)[0]) == ((low >> 5) * 2**26 + (high >> 6) + 0.5) / 2**53


def test_every_part_of_a_key_matters() -> None:
    parts = (0, 1, 2, 2**24 - 1)
    keys = [DrawKey(s, p, e, b) for s in parts for p in parts for e in parts for b in parts]
    drawn = torch.cat([uniforms(keys, purpose) for purpose in Purpose if purpose >= Purpose.draft])
    assert drawn.unique().numel() == drawn.numel()


def test_a_key_with_too_many_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="too many bits"):
        uniforms([DrawKey(0, 2**32)], Purpose.draft)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.integers(1, 50))
def test_both_paths_of_noise_have_the_words_of_philox(seed: int, position: int, vocabulary: int) -> None:
    blocks = (vocabulary + 3) // 4
    numpy = module._rows_numpy([seed, 5], [position, 6], blocks).to(torch.int64).view(2, -1)
    # The path of other devices runs on the CPU too.
    other = module._rows_torch([seed, 5], [position, 6], blocks, "cpu").view(2, -1)
    assert torch.equal(numpy, other)
    assert torch.equal(numpy[0, :vocabulary], words(seed, position, Purpose.gumbel, vocabulary))
    assert torch.equal(gumbel([seed], [position], vocabulary)[0], gumbel([5, seed], [6, position], vocabulary)[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_noise_has_the_same_bits_on_a_gpu() -> None:
    seeds, positions = [1, 2**63, 7], [0, 2**33, 9]
    assert torch.equal(gumbel(seeds, positions, 50_000), gumbel(seeds, positions, 50_000, "cuda").cpu())


def test_noise_is_exact_in_its_grid() -> None:
    x = gumbel(range(50), range(50), 2_000).double() * 2**19
    assert torch.equal(x, x.round())
    # The largest and the smallest word there can be.
    edge = (torch.tensor([0.0, 2.0**32 - 1], dtype=torch.float64) + 0.5) * 2**-32
    assert float((-(-edge.log()).log()).abs().max()) < 32


def test_noise_is_gumbel() -> None:
    # 400,000 draws: mean, variance and the distribution function within 5 standard errors (p < 6e-7 each).
    x = gumbel([11] * 8, range(8), 50_000).double().flatten()
    n = x.numel()
    variance = math.pi**2 / 6
    assert abs(float(x.mean()) - 0.5772156649015329) < 5 * math.sqrt(variance / n)
    assert abs(float(x.var()) - variance) < 5 * variance * math.sqrt(4.4 / n)
    for at in (-1.0, 0.0, 1.0, 3.0, 6.0):
        expected = math.exp(-math.exp(-at))
        assert abs(float((x <= at).double().mean()) - expected) < 5 * math.sqrt(expected * (1 - expected) / n)


def test_the_winner_of_the_race_has_the_law() -> None:
    # chi-square with 5 degrees of freedom over 60,000 positions; 38.4 has a tail of 3e-7.
    p = torch.tensor([0.5, 0.25, 0.15, 0.06, 0.03, 0.01], dtype=torch.float64)
    won = (p.log() + gumbel([3] * 60_000, range(60_000), 6)).argmax(dim=-1).bincount(minlength=6)
    expected = p * 60_000
    assert float(((won - expected) ** 2 / expected).sum()) < 38.4


def test_kept_rows_are_the_rows() -> None:
    kept = GumbelRows(40, elements=160, runs=2)
    for positions in ([0, 1, 5], [4, 9, 13], [0, 3, 1000]):
        assert torch.equal(kept.rows([8] * 3, positions), gumbel([8] * 3, positions, 40))
    assert torch.equal(kept.rows([8, 9], [3, 3]), gumbel([8, 9], [3, 3], 40))
    assert kept.rows([], []).shape == (0, 40)
