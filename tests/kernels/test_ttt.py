"""Test-time training: in one go as token by token, and as gradient descent by autograd on the loss that is stated."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paceline.kernels.delta_rule import delta_write
from paceline.kernels.ttt import (
    MLPWeights,
    ttt_linear_write,
    ttt_linear_write_by_token,
    ttt_mlp_read,
    ttt_mlp_write,
    ttt_mlp_write_by_token,
)

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 17), st.integers(1, 12), st.integers(1, 9), st.integers(1, 7))
TYPES = pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-11), (torch.float32, 5e-4)])


def drawn(
    seed: int, sizes: tuple[int, int, int, int, int], dtype: torch.dtype
) -> tuple[Tensor, MLPWeights, tuple[Tensor, Tensor, Tensor]]:
    """Linear weights, weights of an MLP, and tokens."""
    heads, n, k, v, m = sizes
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=dtype)

    keys = torch.nn.functional.normalize(normal(heads, n, k), dim=-1)
    rates = 0.3 * torch.rand(heads, n, generator=draw, dtype=dtype)
    mlp = normal(heads, k, m), normal(heads, 1, m), 0.3 * normal(heads, m, v)
    return normal(heads, k, v), mlp, (keys, normal(heads, n, v), rates)


@TYPES
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 30), sizes=SIZES, batch=st.integers(1, 18))
def test_in_one_go_as_token_by_token(
    dtype: torch.dtype, near: float, seed: int, sizes: tuple[int, int, int, int, int], batch: int
) -> None:
    linear, mlp, tokens = drawn(seed, sizes, dtype)
    before = [part.clone() for part in (linear, *mlp)]
    torch.testing.assert_close(
        ttt_linear_write(linear, *tokens, batch),
        ttt_linear_write_by_token(linear, *tokens, batch),
        atol=near,
        rtol=near,
    )
    torch.testing.assert_close(
        ttt_mlp_write(mlp, *tokens, batch), ttt_mlp_write_by_token(mlp, *tokens, batch), atol=near, rtol=near
    )
    assert all(torch.equal(one, other) for one, other in zip((linear, *mlp), before, strict=True))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 30), sizes=SIZES, batch=st.integers(1, 18))
def test_a_mini_batch_is_a_step_of_gradient_descent(
    seed: int, sizes: tuple[int, int, int, int, int], batch: int
) -> None:
    linear, mlp, (keys, values, rates) = drawn(seed, sizes, torch.float64)

    def descended(weights: tuple[Tensor, ...]) -> list[Tensor]:
        now = [part.clone() for part in weights]
        for start in range(0, keys.shape[1], batch):
            part = slice(start, start + batch)
            now = [each.detach().requires_grad_() for each in now]
            found = keys[:, part] @ now[0] if len(now) == 1 else ttt_mlp_read((now[0], now[1], now[2]), keys[:, part])
            loss = (rates[:, part, None] * (found - values[:, part]).square()).sum() / 2
            now = [each - by for each, by in zip(now, torch.autograd.grad(loss, now), strict=True)]
        return [each.detach() for each in now]

    (wanted,) = descended((linear,))
    torch.testing.assert_close(ttt_linear_write(linear, keys, values, rates, batch), wanted, atol=1e-10, rtol=1e-10)
    found = ttt_mlp_write(mlp, keys, values, rates, batch)
    torch.testing.assert_close(list(found), descended(mlp), atol=1e-9, rtol=1e-9)


def test_mini_batches_of_one_token_are_the_delta_rule() -> None:
    linear, _, tokens = drawn(5, (2, 12, 8, 5, 1), torch.float64)
    torch.testing.assert_close(ttt_linear_write(linear, *tokens, 1), delta_write(linear, *tokens), atol=1e-12, rtol=0)
