"""Acceptance equals what drawing shows; likelihood equals the sum over single tokens; xz looks back."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zoo.code.acceptance import COUPLINGS, Coupling, joint, on_continuations, on_text
from zoo.code.baseline import xz_bits_per_byte, xz_size
from zoo.code.likelihood import bits
from zoo.code.models import Shape, build
from zoo.code.sampling import continued
from zoo.folder import frozen

SMALL = Shape(width=64, layers=1, heads=1, kv_heads=1, inner=64, vocabulary=48)
OTHER = Shape(width=64, layers=2, heads=1, kv_heads=1, inner=64, vocabulary=48)


def draw_logits(seed: int, rows: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return tuple(2 * torch.randn(rows, vocabulary, generator=draw) for _ in range(2))  # type: ignore[return-value]


@given(seed=st.integers(0, 10_000), temperature=st.sampled_from([0.3, 0.7, 1.0, 2.0]))
def test_gumbel_formula_is_the_sum_over_all_pairs(seed: int, temperature: float) -> None:
    target, draft = draw_logits(seed, 3, 7)
    p, q = (torch.softmax(x.double() / temperature, -1) for x in (target, draft))
    both = joint(target, draft, temperature, "gumbel")
    for n in range(3):
        for x in range(7):
            plain = 1 / sum(max(float(p[n, y] / p[n, x]), float(q[n, y] / q[n, x])) for y in range(7))
            assert float(both[n, x]) == pytest.approx(plain, rel=1e-9)


@given(seed=st.integers(0, 10_000), temperature=st.sampled_from([0.0, 0.7, 1.0]))
def test_no_coupling_beats_the_overlap(seed: int, temperature: float) -> None:
    target, draft = draw_logits(seed, 4, 9)
    best, shared = (joint(target, draft, temperature, coupling).sum(-1) for coupling in ("rejection", "gumbel"))
    assert bool((shared <= best + 1e-12).all())
    assert bool((best <= 1 + 1e-12).all())
    for coupling in COUPLINGS:
        assert joint(target, target, temperature, coupling).sum(-1).tolist() == pytest.approx([1.0] * 4)


def test_draws_agree_as_often_as_the_formulas_say() -> None:
    """200,000 draws; 5 standard deviations, so that a sound build fails once in a million."""
    target, draft = draw_logits(3, 1, 6)
    p, q = (torch.softmax(x[0].double(), -1) for x in (target, draft))
    rng = np.random.default_rng(1)
    count = 200_000
    race = rng.exponential(size=(count, 6))
    gumbel = float(np.mean((race / p.numpy()).argmin(1) == (race / q.numpy()).argmin(1)))
    token = rng.choice(6, size=count, p=q.numpy())
    rejection = float(np.mean(rng.random(count) * q.numpy()[token] < p.numpy()[token]))
    for coupling, share in (("gumbel", gumbel), ("rejection", rejection)):
        expected = float(joint(target, draft, 1.0, coupling).sum())  # type: ignore[arg-type]
        assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / count)
    assert abs(gumbel - rejection) > 0.01  # so the test tells one from the other


def test_at_temperature_zero_the_likeliest_tokens_must_agree() -> None:
    target = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    draft = torch.tensor([[0.0, 9.0, 1.0], [0.0, 2.0, 1.0]])
    for coupling in COUPLINGS:
        assert joint(target, draft, 0.0, coupling).sum(-1).tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="temperature"):
        joint(target, draft, -1.0, "rejection")


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_model_accepts_all_of_its_own_drafts(temperature: float) -> None:
    model = frozen(build(SMALL, 3))
    rows = torch.arange(96).view(2, 48) % 48
    own = on_continuations(model, model, rows[:, :8], 16, temperature, window=4)
    text = on_text(model, model, rows, temperature, first=8)
    for coupling in COUPLINGS:
        assert own[coupling].mean == pytest.approx(1)
        assert own[coupling].by_position == pytest.approx((1,) * 4)
        assert text[coupling].mean == pytest.approx(1)
        assert text[coupling].positions == 80


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_first_place_of_a_window_accepts_what_the_mean_says(coupling: Coupling) -> None:
    """Two estimates of one number, one from the tokens written and one from whole rows (5 standard deviations)."""
    target, draft = frozen(build(SMALL, 3)), frozen(build(OTHER, 4))
    draw = torch.Generator().manual_seed(5)
    for model in (target, draft):
        for parameter in model.parameters():  # fresh weights give nearly flat rows
            torch.nn.init.normal_(parameter, std=0.2, generator=draw)
    result = on_continuations(target, draft, torch.arange(48).view(24, 2), 60, 1.0, window=1)[coupling]
    assert 0.05 < result.mean < 0.95
    assert abs(result.by_position[0] - result.mean) < 5 * 0.5 / math.sqrt(result.positions)


def test_sampling_is_a_function_of_its_seed_and_follows_the_model() -> None:
    model = frozen(build(SMALL, 3))
    prompts = torch.arange(8).view(2, 4)
    one = continued(model, prompts, 6, 1.0, seed=1)
    assert one.tolist() == continued(model, prompts, 6, 1.0, seed=1).tolist()
    assert one.tolist() != continued(model, prompts, 6, 1.0, seed=2).tolist()
    assert one[:, :4].tolist() == prompts.tolist()
    greedy = continued(model, prompts, 6, 0.0, seed=1)
    logits = model(input_ids=greedy, use_cache=False).logits
    assert greedy[:, 4:].tolist() == logits[:, 3:-1].argmax(-1).tolist()


@given(length=st.integers(1, 40), context=st.integers(2, 12), part=st.integers(1, 12), batch=st.integers(1, 4))
def test_bits_count_every_token_once(length: int, context: int, part: int, batch: int) -> None:
    model = frozen(build(SMALL, 3))
    stride = min(part, context)
    stream = np.random.default_rng(length).integers(0, 48, length)
    total, done = 0.0, 1
    for start in range(0, length, stride):  # one window at a time, token by token
        cut = torch.from_numpy(stream[start : start + context + 1])[None]
        log_p = torch.log_softmax(model(input_ids=cut, use_cache=False).logits[0], -1)
        for place in range(1, cut.shape[1]):
            if start + place == done:
                total -= float(log_p[place - 1, cut[0, place]]) / math.log(2)
                done += 1
    assert done == max(1, length)
    assert bits(model, stream, context, stride, batch) == pytest.approx(total, rel=1e-5, abs=1e-6)


def test_xz_reads_what_stands_far_back() -> None:
    draw = random.Random(1)
    text = bytes(draw.randrange(256) for _ in range(20_000))
    between = bytes(draw.randrange(256) for _ in range(200_000))
    assert xz_bits_per_byte(between, text) == pytest.approx(8, rel=0.01)
    assert xz_bits_per_byte(text + between, text) < 0.3
    short = xz_size(text + between + text, 1 << 16) - xz_size(text + between, 1 << 16)
    assert short > 0.9 * len(text)  # a dictionary that does not reach is no help
    with pytest.raises(ValueError, match="no held-out text"):
        xz_bits_per_byte(b"abc", b"")
