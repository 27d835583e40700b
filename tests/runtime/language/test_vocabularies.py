"""The target's own rows decide which tokens there are, in every mode, and its own positions how many; only the drafter
is held to what it has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from paceline.runtime.language.models import Models
from paceline.runtime.result import LanguageResult
from tests.launch.language.pair import SHAPE, VOCAB, save_pair, save_tokenizer
from tests.runtime.language.cluster import generate, language, serial, spec_of, texts

pytestmark = pytest.mark.usefixtures("read_once")

Pair = tuple[Path, Path]
PROMPTS = ("def add(a, b):\n    return", "class Thing", "x")
ROWS = 420
"""Of the target's embedding; its tokenizer has no more than `VOCAB`."""


def save(folder: Path, rows: int, seed: int = 11, layers: int = 3, **changes: Any) -> Path:
    """A random model with a tokenizer of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        shape = SHAPE | {"vocab_size": rows, "num_hidden_layers": layers} | changes
        LlamaForCausalLM(LlamaConfig(**shape)).eval().save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def add_token(folder: Path, text: str = "<|more|>") -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([text])
    tokenizer.save_pretrained(folder)


def greedy(folder: Path, spec: Any, count: int) -> list[list[int]]:
    """What Transformers generates."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    model.generation_config.eos_token_id = None
    found = []
    for number in range(len(spec.prompts)):
        ids = torch.tensor([spec.begin(number, Models.of(spec).tokenizer())])
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
        found.append(whole[0, ids.shape[1] :].tolist())
    return found


def all_ways(pair: Pair, temperature: float, **more: Any) -> list[LanguageResult]:
    """With drafts on one and two ranks of verifiers, plain, with n-grams, and serial."""
    keys: dict[str, Any] = {"speculation__window": 3, "speculation__depth": 2, "speculation__hedge": 2}
    asked: dict[str, Any] = {"temperature": temperature, "max_tokens": 20, "ignore_eos": True, **more}
    found = [serial(spec_of(language(pair, **keys), PROMPTS, **asked))]
    ways: tuple[tuple[int, dict[str, Any], dict[str, bool]], ...] = (
        (1, {}, {}),
        (2, {}, {}),
        (1, {}, {"plain": True}),
        (1, {"speculation__drafter": "ngram", "speculation__hedge": 0}, {}),
    )
    for verifiers, changed, options in ways:
        found.append(generate(spec_of(language(pair, verifiers, **(keys | changed)), PROMPTS, **asked, **options)))
    return found


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("draft_rows", [VOCAB, 100])
def test_rows_beyond_the_tokenizer_are_tokens_in_every_mode(
    tmp_path: Path, draft_rows: int, temperature: float
) -> None:
    """A padded target, with a drafter that has fewer rows, or fewer than there are tokens."""
    pair = save(tmp_path / "target", ROWS), save(tmp_path / "draft", draft_rows, seed=12)
    first, *others = all_ways(pair, temperature)
    for result in others:
        assert texts(result) == texts(first)
    seen = {token for text in first.sessions for token in text.token_ids}
    assert max(seen) >= VOCAB, "no row beyond the tokenizer was drawn, so nothing was tested"
    if temperature == 0.0:
        spec = spec_of(language(pair), PROMPTS, temperature=0.0)
        assert [text.token_ids for text in first.sessions] == greedy(pair[0], spec, 20)


def test_a_drafter_with_fewer_rows_under_rejection(tmp_path: Path) -> None:
    """What it does not have is drawn all the same: the residual and the noise are over the target's tokens."""
    pair = save(tmp_path / "target", ROWS), save(tmp_path / "draft", 100, seed=12)
    keys = {"speculation__window": 3, "speculation__depth": 2, "speculation__coupling": "rejection"}
    spec = spec_of(language(pair, **keys), PROMPTS, temperature=1.0, max_tokens=40, ignore_eos=True)
    result = generate(spec)
    assert [text.finish_reason for text in result.sessions] == ["length"] * 3
    assert result.warnings == []
    assert max(token for text in result.sessions for token in text.token_ids) >= VOCAB


def test_an_end_of_text_beyond_the_tokenizer_ends_in_every_mode(tmp_path: Path) -> None:
    pair = save(tmp_path / "target", ROWS), save(tmp_path / "draft", ROWS, seed=12)
    free = serial(spec_of(language(pair), PROMPTS, temperature=0.0, max_tokens=20, ignore_eos=True))
    end = next(token for text in free.sessions for token in text.token_ids if token >= VOCAB)
    for folder in pair:
        for name in ("config.json", "generation_config.json"):
            path = folder / name
            path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": end}))
    first, *others = all_ways(pair, 0.0, ignore_eos=False)
    assert "eos" in [text.finish_reason for text in first.sessions]
    for result in others:
        assert texts(result) == texts(first)


@pytest.mark.parametrize("who", ["target", "draft"])
def test_one_more_token_on_one_side(tmp_path: Path, who: str) -> None:
    pair = save_pair(tmp_path)
    add_token(tmp_path / who)
    first, *others = all_ways(pair, 1.0)
    for result in others:
        assert texts(result) == texts(first)


@pytest.mark.parametrize(("longest", "temperature"), [(8, 0.0), (24, 1.0)])
def test_a_drafter_drafts_within_its_own_context(tmp_path: Path, longest: int, temperature: float) -> None:
    """One that is outrun by a prompt, or in the middle of the text; the text is the target's."""
    target, near = save_pair(tmp_path)
    path = near / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": longest}))
    first, *others = all_ways((target, near), temperature, max_tokens=30)
    for result in others:
        assert texts(result) == texts(first)
    drafted = others[0]
    # On a busy machine it may also have been slower than the verifier waits.
    assert [warning for warning in drafted.warnings if "silent for too long" not in warning] == [
        f"the drafter takes {longest} positions; longer texts were decoded without drafts from there on"
    ]
    for text in drafted.sessions:
        assert text.drafted <= max(0, longest + 1 - text.prompt_tokens)
    assert sum(text.drafted for text in drafted.sessions) > 0
