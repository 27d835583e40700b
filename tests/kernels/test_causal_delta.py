"""The causal delta rule: at once as token by token, in any split, and what is read is what was written."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from paceline.kernels import causal_delta as module
from paceline.kernels.causal_delta import causal_delta, causal_delta_by_token
from paceline.kernels.delta_rule import delta_write_by_token


def drawn(seed: int, count: int, keys: int, values: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """State, queries, keys, values, strengths and log decays of two heads."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(2, *shape, generator=draw, dtype=dtype)

    q, k = normalize(normal(count, keys), dim=-1), normalize(normal(count, keys), dim=-1)
    return normal(keys, values), q, k, normal(count, values), normal(count).sigmoid(), -normal(count).exp()


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 5e-5)])
@pytest.mark.parametrize("corrects", [True, False])
@given(seed=st.integers(0, 1 << 30), count=st.integers(1, 40), sizes=st.tuples(*[st.integers(1, 9)] * 2),
       decays=st.booleans(), data=st.data())  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_at_once_as_token_by_token_in_any_split(
    dtype: torch.dtype, near: float, corrects: bool, seed: int, count: int, sizes: tuple[int, int], decays: bool,
    data: st.DataObject,
) -> None:  # fmt: skip
    state, q, k, v, beta, decay = drawn(seed, count, *sizes, dtype)
    gates = decay if decays else None
    wanted, last = causal_delta_by_token(state, q, k, v, beta, gates, corrects)
    at, outs, now, before = 0, [], state, state.clone()
    while at < count:
        part = slice(at, at + data.draw(st.integers(1, count - at)))
        one = None if gates is None else gates[:, part]
        out, now = causal_delta(now, q[:, part], k[:, part], v[:, part], beta[:, part], one, corrects)
        outs.append(out)
        at = part.stop
    torch.testing.assert_close(torch.cat(outs, 1), wanted, atol=near, rtol=near)
    torch.testing.assert_close(now, last, atol=near, rtol=near)
    assert torch.equal(state, before)


def test_long_texts_are_cut_into_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    given_ = drawn(1, 50, 4, 3, torch.float64)
    whole = causal_delta(*given_)
    monkeypatch.setattr(module, "CHUNK", 7)
    for found, wanted in zip(causal_delta(*given_), whole, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)


def test_it_writes_what_a_context_memory_writes() -> None:
    state, q, k, v, beta, decay = drawn(2, 20, 5, 4, torch.float64)
    wanted = delta_write_by_token(state, k, v, beta, decay)
    torch.testing.assert_close(causal_delta(state, q, k, v, beta, decay)[1], wanted, atol=1e-12, rtol=1e-12)


def test_a_key_that_is_written_again_reads_its_new_value() -> None:
    """With strength 1 and orthogonal keys nothing else is disturbed; linear attention reads the sum."""
    k = torch.eye(4)[[0, 1, 2, 1]]
    v = torch.arange(12.0).view(4, 3)
    ones = torch.ones(4)
    read = causal_delta(torch.zeros(4, 3), k, k, v, ones)[0]
    assert torch.equal(read, v)
    summed = causal_delta(torch.zeros(4, 3), k, k, v, ones, corrects=False)[0]
    assert torch.equal(summed[3], v[1] + v[3])


def test_a_strong_decay_does_not_overflow() -> None:
    state, q, k, v, beta, decay = drawn(3, 64, 4, 4, torch.float32)
    out, last = causal_delta(state, q, k, v, beta, 30 * decay)
    assert out.isfinite().all() and last.isfinite().all()
