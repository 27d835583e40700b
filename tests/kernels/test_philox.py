"""Philox against the known answers of Random123, and what a keyed draw must be."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.kernels.philox import Purpose, normal, philox_4x32, session_seed, words

_ONES = 0xFFFFFFFF


def test_known_answers_of_random123() -> None:
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    cases = [
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([_ONES] * 4, (_ONES, _ONES), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (pi, (0xA4093822, 0x299F31D0), [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
    ]
    for counter, key, answer in cases:
        assert philox_4x32(torch.tensor([counter]), key)[0].tolist() == answer


@settings(max_examples=30)
@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40), st.integers(1, 40), st.integers(0, 40))
def test_a_draw_does_not_depend_on_how_much_is_drawn(seed: int, position: int, count: int, more: int) -> None:
    short = words(seed, position, Purpose.noise, count)
    assert torch.equal(words(seed, position, Purpose.noise, count + more)[:count], short)
    assert not torch.equal(words(seed, position, Purpose.session, count), short)


def test_normal_has_the_moments_of_a_normal() -> None:
    # 400,000 draws: the mean lies within 5 standard errors, variance and kurtosis within theirs (p < 1e-6 each).
    x = normal(7, 3, Purpose.noise, (400_000,)).double()
    n = x.numel()
    assert abs(x.mean()) < 5 / math.sqrt(n)
    assert abs(x.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs((x**4).mean() - 3) < 5 * math.sqrt(96 / n)
    y = normal(7, 4, Purpose.noise, (400_000,)).double()
    assert abs((x * y).mean()) < 5 / math.sqrt(n)


def test_session_seeds_differ() -> None:
    assert len({session_seed(seed, session) for seed in range(20) for session in range(20)}) == 400
