"""The delta rule and linear attention: written at once as token by token, and what it promises about what is read."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paceline.kernels.delta_rule import (
    delta_read,
    delta_write,
    delta_write_by_token,
    linear_write,
    linear_write_by_token,
)

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 17), st.integers(1, 12), st.integers(1, 9))


def drawn(seed: int, sizes: tuple[int, int, int, int], dtype: torch.dtype) -> tuple[Tensor, ...]:
    heads, n, k, v = sizes
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=dtype)

    keys = torch.nn.functional.normalize(normal(heads, n, k), dim=-1)
    beta, decay = torch.rand(heads, n, generator=draw, dtype=dtype), -torch.rand(heads, n, generator=draw, dtype=dtype)
    return normal(heads, k, v), keys, normal(heads, n, v), beta, decay


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 30), sizes=SIZES, decays=st.booleans())
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_at_once_as_token_by_token(
    dtype: torch.dtype, near: float, seed: int, sizes: tuple[int, int, int, int], decays: bool
) -> None:
    state, k, v, beta, decay = drawn(seed, sizes, dtype)
    before = state.clone()
    gates = decay if decays else None
    found, wanted = delta_write(state, k, v, beta, gates), delta_write_by_token(state, k, v, beta, gates)
    torch.testing.assert_close(found, wanted, atol=near, rtol=near)
    found, wanted = linear_write(state, k, v, beta, gates), linear_write_by_token(state, k, v, beta, gates)
    torch.testing.assert_close(found, wanted, atol=near, rtol=near)
    assert torch.equal(state, before)  # who holds the old state, as a fork does, still has it


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 30), sizes=SIZES, cut=st.integers(0, 17))
def test_in_two_parts_as_in_one(seed: int, sizes: tuple[int, int, int, int], cut: int) -> None:
    state, k, v, beta, decay = drawn(seed, sizes, torch.float64)
    cut = min(cut, k.shape[-2])
    whole = delta_write(state, k, v, beta, decay)
    parts = state
    for part in (slice(0, cut), slice(cut, None)):
        if k[:, part].shape[-2]:
            parts = delta_write(parts, k[:, part], v[:, part], beta[:, part], decay[:, part])
    torch.testing.assert_close(parts, whole, atol=1e-12, rtol=1e-12)


def test_what_was_written_in_full_is_read_back_and_the_newest_counts() -> None:
    state, k, v, _, _ = drawn(1, (2, 6, 8, 5), torch.float64)
    ones = torch.ones(2, 6, dtype=torch.float64)
    keys = torch.linalg.qr(k.mT)[0].mT  # orthonormal: nothing interferes
    first = delta_write(state, keys, v, ones)
    torch.testing.assert_close(delta_read(first, keys), v, atol=1e-12, rtol=0)
    torch.testing.assert_close(delta_read(delta_write(first, keys, 2 * v, ones), keys), 2 * v, atol=1e-12, rtol=0)
    # Strength 0 writes nothing.
    assert torch.equal(delta_write(first, keys, 9 * v, 0 * ones), first)
