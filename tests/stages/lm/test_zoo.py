"""Every model type that is accepted gives Transformers' greedy text, whichever way it runs; the others are refused
before a weight is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from paceline.pipeline.tiers import TierSpec
from paceline.stages.lm.blueprint import Blueprint
from paceline.stages.lm.decoder import Decoder
from paceline.stages.lm.folder import ModelFolderError
from paceline.stages.lm.rank_tiers import RankTiers

from .zoo_of_models import KINDS, VOCAB, save

RUN = [
    "afmoe", "apertus", "arcee", "aria_text", "bitnet", "cwm", "dots1", "ernie4_5", "ernie4_5_moe", "exaone4",
    "exaone_moe", "flex_olmo", "gemma", "gemma3_text", "gemma4_unified_text", "glm", "glm4", "glm4_moe",
    "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neox", "granite", "granitemoe", "granitemoeshared", "helium",
    "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "hyperclovax", "internlm3", "iquestcoder", "jais2",
    "kolibri1", "laguna", "lfm2", "llama", "mellum", "minimax_m2", "minimax_m3_vl_text", "ministral",
    "ministral3", "mistral", "mixtral", "moshi", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "persimmon",
    "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "solar_open",
    "stablelm", "starcoder2",
]  # fmt: skip
PROMPTS = (torch.arange(12) * 31 % (VOCAB - 3) + 3, torch.arange(5) * 17 % (VOCAB - 3) + 3)
"""The first is longer than the sliding windows."""
NEW = 6
Step = Callable[[Sequence[Tensor]], list[Tensor]]
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def greedy(step: Step) -> list[list[int]]:
    """Continue both prompts at once; `step` is given new tokens of each, and gives the logits behind them."""
    given = list(PROMPTS)
    texts: list[list[int]] = [[] for _ in PROMPTS]
    for _ in range(NEW):
        chosen = [int(logits[-1].argmax()) for logits in step(given)]
        for text, token in zip(texts, chosen, strict=True):
            text.append(token)
        given = [torch.tensor([token]) for token in chosen]
    return texts


def of_transformers(model: Any) -> Step:
    """All tokens anew each time: without a cache nothing but the model can be wrong."""
    texts = [torch.empty(0, dtype=torch.int64) for _ in PROMPTS]

    def step(given: Sequence[Tensor]) -> list[Tensor]:
        texts[:] = [torch.cat(pair) for pair in zip(texts, given, strict=True)]
        with torch.inference_mode():
            return [model(text[None], use_cache=False).logits[0] for text in texts]

    return step


def of_runs(*runs: Decoder) -> Step:
    """Runs of layers, one after the other, both sequences in every pass."""
    held = [[run.open() for _ in PROMPTS] for run in runs]

    def step(given: Sequence[Tensor]) -> list[Tensor]:
        passed = list(given)
        for run, sequences in zip(runs, held, strict=True):
            passed = run.forward(list(zip(sequences, passed, strict=True)))
        return passed

    return step


def tiers_of(plan: Blueprint) -> RankTiers:
    """Two blocks of each layer in hbm, so that most of the KV is elsewhere."""
    heads, size = plan.kv_shape
    block = 2 * heads * size * 4 * 4 * plan.layers
    return RankTiers(TierSpec(hbm=2 * block, dram=40 * block, block_size=4), "tiny")


def check(model: Any, folder: Path) -> str | None:
    """Check a saved model; gives why it was refused."""
    try:
        plan = Blueprint.read(folder)
    except ModelFolderError as error:
        return str(error)
    theirs = greedy(of_transformers(model))
    assert greedy(of_runs(Decoder.load(folder))) == theirs
    assert greedy(of_runs(*(Decoder.load(folder, layers=layers) for layers in ((0, 1), (1, 2))))) == theirs
    assert greedy(of_runs(Decoder.load(folder, rows=1 if plan.mixes_rows else 8))) == theirs
    try:
        tiers = tiers_of(plan)
    except ModelFolderError as error:
        assert "run the model without tiers" in str(error)
        return None
    tiered = Decoder.load(folder, tiers=tiers)
    assert greedy(of_runs(tiered)) == theirs
    assert tiered.tiers is not None
    tiered.tiers.close()
    return None


@pytest.mark.parametrize("kind", RUN)
def test_a_type_that_is_accepted_gives_transformers_text(kind: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    assert check(save(kind, tmp_path), tmp_path) is None


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(RUN)))
def test_all_other_types_are_refused_by_name_or_give_transformers_text(kind: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    try:
        model = save(kind, tmp_path)
    except Exception as error:  # whatever a type's own code raises for sizes that it does not take
        pytest.skip(f"not built in a small size: {error}")
    try:
        why = check(model, tmp_path)
    except ModelFolderError:
        raise AssertionError(f"{kind} was accepted and then refused with its weights") from None
    assert why is not None, f"{kind} runs; add it to RUN"
    assert "give" in why or "models built like" in why or "models of their build run" in why
