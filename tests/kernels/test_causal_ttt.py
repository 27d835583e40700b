"""TTT-Linear: the dual form is gradient descent on the loss that the paper states, whatever comes at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import layer_norm, normalize

from paceline.kernels.causal_ttt import InnerNorm, TTTState, causal_ttt

SIZE, HEADS = 6, 2


def drawn(seed: int, count: int, batch: int, dtype: torch.dtype) -> tuple[TTTState, list[Tensor], Tensor, InnerNorm]:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=dtype)

    weight, bias = normal(HEADS, SIZE, SIZE), normal(HEADS, 1, SIZE)
    state = (weight, bias, torch.zeros_like(weight), torch.zeros_like(bias), torch.tensor(0))
    q, k = (normalize(normal(HEADS, count, SIZE), dim=-1) for _ in range(2))
    tokens = [q, k, normal(HEADS, count, SIZE), normal(HEADS, count).sigmoid()]
    return (
        state,
        tokens,
        normal(batch).sigmoid(),
        InnerNorm(1 + 0.1 * normal(HEADS, 1, SIZE), 0.1 * normal(HEADS, 1, SIZE)),
    )


def descended(state: TTTState, tokens: list[Tensor], steps: Tensor, norm: InnerNorm) -> tuple[Tensor, Tensor, Tensor]:
    """Token by token, with gradients by autograd of |f(k) - v|^2 / 2: what is read, and the last weights."""
    q, k, v, rate = tokens
    weight, bias = state[0].clone(), state[1].clone()
    sums = [torch.zeros_like(weight), torch.zeros_like(bias)]
    reads = []

    def model(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return x + norm.weight * layer_norm(x @ w + b, (SIZE,), eps=1e-6) + norm.bias

    for token in range(q.shape[1]):
        at = token % len(steps)
        w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        loss = (model(k[:, token, None], w, b) - v[:, token, None]).square().sum(-1) / 2
        by = torch.autograd.grad((rate[:, token, None] * loss).sum(), [w, b])
        sums = [total + each for total, each in zip(sums, by, strict=True)]
        now = weight - steps[at] * sums[0], bias - steps[at] * sums[1]
        reads.append(model(q[:, token, None], *now))
        if at == len(steps) - 1:
            weight, bias = now
            sums = [torch.zeros_like(total) for total in sums]
    return torch.cat(reads, 1), weight, bias


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-10), (torch.float32, 2e-3)])
@given(seed=st.integers(0, 1 << 30), count=st.integers(1, 24), batch=st.integers(1, 8), data=st.data())
@settings(max_examples=15, deadline=None)
def test_any_split_is_gradient_descent(
    dtype: torch.dtype, near: float, seed: int, count: int, batch: int, data: st.DataObject
) -> None:
    state, tokens, steps, norm = drawn(seed, count, batch, dtype)
    wanted, weight, bias = descended(state, tokens, steps, norm)
    before = [part.clone() for part in state]
    at, outs, now = 0, [], state
    while at < count:
        part = slice(at, at + data.draw(st.integers(1, count - at)))
        out, now = causal_ttt(now, *(each[:, part] for each in tokens), steps, norm)  # type: ignore[call-arg]
        outs.append(out)
        at = part.stop
    torch.testing.assert_close(torch.cat(outs, 1), wanted, atol=near, rtol=near)
    torch.testing.assert_close(now[0], weight, atol=near, rtol=near)
    torch.testing.assert_close(now[1], bias, atol=near, rtol=near)
    assert int(now[4]) == count % batch
    assert all(torch.equal(one, other) for one, other in zip(state, before, strict=True))


def test_what_is_learned_is_what_is_asked_for() -> None:
    """After many steps on one pair, the model maps its key to its value, up to what a layer norm can give."""
    state, tokens, _, _ = drawn(4, 300, 1, torch.float64)
    norm = InnerNorm(torch.ones(HEADS, 1, SIZE, dtype=torch.float64), torch.zeros(HEADS, 1, SIZE, dtype=torch.float64))
    key = tokens[1][:, :1]
    # A target that a layer norm reaches: mean 0 and variance 1.
    value = key + layer_norm(tokens[2][:, :1], (SIZE,))
    same = [key.expand(-1, 300, -1), key.expand(-1, 300, -1), value.expand(-1, 300, -1), torch.ones(HEADS, 300)]
    read, _ = causal_ttt(state, *same, torch.ones(1, dtype=torch.float64), norm)  # type: ignore[call-arg]
    first, last = (read[:, at] - value[:, 0] for at in (0, -1))
    assert float(last.norm()) < 0.02 * float(first.norm())
