"""The shipped pair keeps a floor of quality on held-out modules, and is what its metadata says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

import zoo.code
from zoo.code.corpus import stdlib
from zoo.code.evaluate import forward_ms, pair_acceptance
from zoo.code.likelihood import bits
from zoo.code.models import load
from zoo.code.tokenizer import END_ID, VOCABULARY, load_tokenizer, token_stream

FOLDER = Path(zoo.code.__file__).parent
TARGET, DRAFT = FOLDER / "target", FOLDER / "draft"

pytestmark = pytest.mark.skipif(
    not (TARGET / "model.safetensors").is_file() or not (DRAFT / "model.safetensors").is_file(),
    reason="no trained weights in this checkout",
)


def held_out(*paths: str) -> list[str]:
    texts = {document.path: document.text for document in stdlib().held_out}
    return [texts[path] for path in paths]


def test_pair_shares_its_tokens() -> None:
    assert (TARGET / "tokenizer.json").read_bytes() == (DRAFT / "tokenizer.json").read_bytes()
    assert load_tokenizer(TARGET).get_vocab_size() == VOCABULARY
    heads = []
    for folder in (TARGET, DRAFT):
        with safe_open(str(folder / "model.safetensors"), framework="pt") as handle:
            heads.append(handle.metadata())
    assert heads[0]["corpus_sha256"] == heads[1]["corpus_sha256"]
    assert sum(path.stat().st_size for folder in (TARGET, DRAFT) for path in folder.iterdir()) < 20_000_000


def test_target_knows_python_better_than_a_compressor() -> None:
    texts = held_out("heapq.py", "textwrap.py")
    size = sum(len(text.encode()) + 1 for text in texts)
    stream = token_stream(load_tokenizer(TARGET), texts)
    per_byte = bits(load(TARGET), stream) / size
    assert per_byte < 1.435  # xz -9e with the training text before them, over all held-out modules
    assert per_byte < 0.5 * (len(stream) - 1) * math.log2(VOCABULARY) / size  # half of what knowing nothing costs


def test_drafts_are_accepted() -> None:
    stream = token_stream(load_tokenizer(TARGET), held_out("shlex.py", "csv.py", "http/server.py"))
    result = pair_acceptance(load(TARGET), load(DRAFT), stream, 0.7, windows=6)
    for place in ("text", "continuations"):
        assert result["rejection"][place]["mean"] >= 0.5
        assert result["gumbel"][place]["mean"] <= result["rejection"][place]["mean"]
        assert result["gumbel"][place]["mean"] >= 0.4


def test_drafter_is_much_cheaper() -> None:
    target, draft = load(TARGET), load(DRAFT)
    count = [sum(parameter.numel() for parameter in model.parameters()) for model in (draft, target)]
    assert count[0] < 0.3 * count[1]
    assert forward_ms(draft, 1, repeats=10) < forward_ms(target, 1, repeats=10)


def test_it_writes_python() -> None:
    tokenizer = load_tokenizer(TARGET)
    model = AutoModelForCausalLM.from_pretrained(TARGET, trust_remote_code=False, use_safetensors=True)
    prompt = "import os\n\nclass Reader:\n    def __init__(self, path):\n        self.path ="
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    made = model.generate(ids, max_new_tokens=4, do_sample=False, attention_mask=torch.ones_like(ids))
    assert tokenizer.decode(made[0, ids.shape[1] :].tolist()).startswith(" path\n")
    assert END_ID not in ids
