"""Warping against Transformers' own processors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from paceline.pipeline.speculation.window import Coupling
from paceline.stages.sampling import warp
from paceline.stages.sampling_params import GREEDY_BELOW, SamplingParams


def _theirs(logits: torch.Tensor, context: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    processors = LogitsProcessorList()
    if params.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.temperature not in (0.0, 1.0):
        processors.append(TemperatureLogitsWarper(params.temperature))
    if params.temperature and params.top_k:
        processors.append(TopKLogitsWarper(params.top_k))
    if params.temperature and params.top_p < 1.0:
        processors.append(TopPLogitsWarper(params.top_p))
    return processors(context, logits)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from([0.0, 0.3, 0.7, 1.0, 1.9]),
    st.sampled_from([0, 1, 5, 40, 1000]),
    st.sampled_from([0.01, 0.5, 0.9, 0.999, 1.0]),
    st.sampled_from([0.8, 1.0, 1.3]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_equals_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, penalty: float, dtype: torch.dtype
) -> None:
    g = torch.Generator().manual_seed(seed)
    # bfloat16 has ties: what is kept with them is a part of the definition.
    logits = (torch.randn(3, 64, generator=g) * 4).to(dtype)
    context = torch.randint(0, 64, (3, 9), generator=g)
    params = SamplingParams(temperature, top_k, top_p, penalty)
    mine = warp(logits, params, context.tolist())
    theirs = _theirs(logits.float(), context, params)
    if temperature == 0:
        assert torch.equal(mine, theirs)
    else:
        assert torch.equal(mine.isinf(), theirs.isinf())
        assert torch.equal(mine, theirs.log_softmax(-1))
        assert torch.allclose(mine.exp().sum(-1), torch.ones(3), atol=1e-5)


def test_rows_may_have_contexts_of_different_length() -> None:
    logits = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    params = SamplingParams(0.7, repetition_penalty=1.2)
    contexts = [[1, 2, 2], [], list(range(16))]
    together = warp(logits, params, contexts)
    for row, context in enumerate(contexts):
        assert torch.equal(together[row], warp(logits[row : row + 1], params, [context])[0])
    assert torch.equal(together[1], (logits[1] / 0.7).log_softmax(-1))


def test_the_logits_are_left_as_they_were() -> None:
    logits = torch.randn(2, 16)
    before = logits.clone()
    warp(logits, SamplingParams(0.5, 3, 0.5, 1.5), [[1], [2]])
    assert torch.equal(logits, before)


def test_temperature_zero_is_greedy_whatever_the_coupling() -> None:
    assert SamplingParams(0.0, coupling=Coupling.rejection).effective_coupling is Coupling.greedy
    assert SamplingParams(0.7, coupling=Coupling.rejection).effective_coupling is Coupling.rejection


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-38, 1e-20, 9.9e-6])
@pytest.mark.parametrize("coupling", list(Coupling))
def test_a_temperature_below_the_bound_takes_the_likeliest_token(temperature: float, coupling: Coupling) -> None:
    logits = torch.tensor([[-3e4, 2.0, 3e4, 2.9e4]])
    params = SamplingParams(temperature, coupling=coupling)
    assert params.effective_coupling is Coupling.greedy
    assert torch.equal(warp(logits, params), logits)


@pytest.mark.parametrize("temperature", [GREEDY_BELOW, 1.0, 1e6])
@pytest.mark.parametrize("top_k", [0, 1, 2**31 - 1])
@pytest.mark.parametrize("top_p", [5e-324, 1e-30, 1 - 1e-16, 1.0])
@pytest.mark.parametrize("penalty", [1e-3, 1.0, 1e3])
def test_the_extremes_that_are_allowed_give_a_distribution(
    temperature: float, top_k: int, top_p: float, penalty: float
) -> None:
    logits = torch.tensor([[-3e4, 2.0, 3e4, 2.9e4], [0.0, 0.0, 0.0, 0.0], [-1.0, -2.0, -3.0, -4.0]])
    rows = warp(logits, SamplingParams(temperature, top_k, top_p, penalty), [[0, 2], [1], [0, 1, 2, 3]])
    assert not rows.isnan().any()
    assert torch.allclose(rows.exp().sum(dim=-1), torch.ones(3), atol=1e-5)
    if temperature == GREEDY_BELOW and penalty == 1.0:
        assert rows[0].argmax() == 2 and rows[0, 2] == 0.0


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": 1.1e6}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 2**31}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.0001}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"repetition_penalty": 1e-38}, "repetition_penalty"),
        ({"repetition_penalty": 1001.0}, "repetition_penalty"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty"),
        ({"seed": -1}, "seed"),
    ],
)
def test_values_without_meaning_are_refused(wrong: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=f"{named} is"):
        SamplingParams(**wrong)  # type: ignore[arg-type]


def test_a_penalty_without_contexts_is_refused() -> None:
    with pytest.raises(ValueError, match="context"):
        warp(torch.zeros(1, 4), SamplingParams(repetition_penalty=1.1))
