"""Texts of associative recall say what they should, training resumes exactly, and the shipped models recall."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.stages.lm.memory.model import MemoryLM
from paceline.stages.lm.tokenizer import Tokenizer
from zoo.folder import frozen
from zoo.mqar.evaluate import recalled
from zoo.mqar.models import Shape, publish
from zoo.mqar.recall import SETTINGS, VOCABULARY, Setting, draw, vocabulary
from zoo.mqar.train import Plan, Trainer, run

ZOO = Path(__file__).parents[2] / "zoo" / "mqar"
WORDS = {number: word for word, number in vocabulary().items()}
SHIPPED = {"gated_delta": {4: 0.99, 8: 0.99, 16: 0.99, 32: 0.95}, "ttt_linear": {4: 0.9, 8: 0.85}, "draft": {4: 0.95}}
"""Shares that are recalled at least, by number of pairs."""


@given(pairs=st.integers(1, 20), spare=st.integers(0, 40), seed=st.integers(0, 1 << 30))
@settings(max_examples=30, deadline=None)
def test_every_answer_is_the_value_of_its_key(pairs: int, spare: int, seed: int) -> None:
    batch = draw(Setting(4 * pairs + spare, pairs), 3, (seed,))
    for ids, asked in zip(batch.ids, batch.asked, strict=True):
        words = [WORDS[int(token)] for token in ids]
        keys, values = words[0 : 2 * pairs : 2], words[1 : 2 * pairs : 2]
        assert len(set(keys)) == len(set(values)) == pairs
        assert {word[0] for word in keys} == {"k"} and {word[0] for word in values} == {"v"}
        places = np.flatnonzero(asked)
        assert (places >= 2 * pairs).all() and (places % 2 == 0).all()
        assert sorted(words[place] for place in places) == sorted(keys)
        held = dict(zip(keys, values, strict=True))
        assert all(words[place + 1] == held[words[place]] for place in places)
        noise = set(range(2 * pairs, len(words))) - set(places) - set(places + 1)
        assert all(words[place].startswith("w") for place in noise)


def test_near_queries_are_likelier_than_far_ones() -> None:
    """By the power law the first of 28 slots is drawn with p = 0.25; over 4,000 texts 4 standard errors are 0.028."""
    slots = np.arange(1, 29) ** -0.99
    asked = draw(Setting(58, 1), 4000, (7,)).asked[:, 2::2].mean(0)
    assert abs(asked[0] - slots[0] / slots.sum()) < 0.028
    assert asked[0] > asked[1] > asked[4] > asked[20] > 0


def test_settings_that_can_not_be() -> None:
    with pytest.raises(ValueError, match="a pair takes 4 tokens"):
        Setting(15, 4)


@pytest.mark.parametrize("kind", ["gated_delta", "ttt_linear", "hybrid"])
def test_resumed_run_ends_with_the_same_weights(tmp_path: Path, kind: str) -> None:
    torch.set_num_threads(1)
    plan, shape = Plan(steps=4, warmup=2), Shape(kind, 4, width=16, inner=16)
    whole, half = Trainer(plan, shape), Trainer(plan, shape)
    losses = [whole.advance() for _ in range(4)]
    assert [half.advance() for _ in range(2)] == losses[:2]
    half.save(tmp_path / "checkpoint.safetensors")
    resumed = Trainer(plan, shape)
    resumed.load(tmp_path / "checkpoint.safetensors")
    assert [resumed.advance() for _ in range(2)] == losses[2:]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    with pytest.raises(ValueError, match="give a fresh --out folder"):
        Trainer(plan, Shape(kind, 8, width=16, inner=16)).load(tmp_path / "checkpoint.safetensors")


def test_a_run_leaves_a_folder_that_can_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.mqar.train.recalled", lambda model, texts: recalled(model, SETTINGS[:1], 4))
    trainer = Trainer(Plan(steps=2), Shape("gated_delta", 4, width=16, inner=16))
    found = run(trainer, tmp_path)
    assert list(found) == [4] and (tmp_path / "log.jsonl").read_text().count("\n") == 1
    model = MemoryLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value.bfloat16().float()), name
    assert run(Trainer(Plan(steps=2), trainer.shape), tmp_path) == found


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_recall(name: str) -> None:
    torch.set_num_threads(1)
    model = frozen(MemoryLM.from_pretrained(ZOO / name, dtype=torch.float32))
    found = recalled(model, [setting for setting in SETTINGS if setting.pairs in SHIPPED[name]], texts=32)
    for pairs, least in SHIPPED[name].items():
        assert found[pairs] >= least


def test_words_are_tokens(tmp_path: Path) -> None:
    publish(Shape("delta", 4, width=16, inner=16), {}, tmp_path, {})
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.size == VOCABULARY
    text = "k17 v3 w61 k255"
    assert [WORDS[token] for token in tokenizer.encode(text)] == text.split()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("k17 nonsense") == [vocabulary()["k17"], vocabulary()["<|unknown|>"]]
