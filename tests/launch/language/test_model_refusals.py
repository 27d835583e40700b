"""Models that can't do what is asked are refused on the command line with exit code 2, before anything is started."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.launch.language.pair import VOCAB, save_pair, save_tokenizer
from tests.launch.language.test_cli import THREE, TWO, refused
from tests.stages.lm.memory_models import save_memory
from tests.stages.lm.models import save_random

ROPE = {"rope_theta": 10000.0, "factor": 2.0}


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something was started")

    monkeypatch.setattr("paceline.launch.commands.start.launch", started)


def target(folder: Path, kind: str, **changes: Any) -> list[str]:
    save_random(kind, folder, vocab_size=300, **changes)
    save_tokenizer(folder)
    return [TWO, "--prompt", "def add(", "--plain", "--set", f"model.target={folder}"]


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def truncated(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-8])


def missing(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def bent(folder: Path) -> None:
    edit(folder / "config.json", num_key_value_heads=1)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (pointer, "is a pointer of Git LFS and not the weights; run `git lfs pull`"),
        (truncated, "can't be read"),
        (missing, "holds no weight `model.norm.weight` (1 are missing); download the model again"),
        (bent, "the two files are not of the same model"),
    ],
)
@pytest.mark.parametrize("who", ["target", "draft"])
def test_weights(harm: Callable[[Path], None], message: str, who: str, tmp_path: Path) -> None:
    one, other = save_pair(tmp_path)
    harm(tmp_path / who)
    models = ["--set", f"model.target={one}", "--set", f"model.draft={other}"]
    said = refused(TWO, "--prompt", "x", *models)
    assert message in said and str(tmp_path / who) in said


def test_no_attention(tmp_path: Path) -> None:
    tiers = ["--set", "tiers.verifier.hbm=64MiB"]
    for more in ([], tiers):
        said = refused(*target(tmp_path, "mamba"), *more)
        assert "keeps its state in a way that is no KV cache; give a model with attention in every layer" in said


def test_states_of_constant_size_are_not_in_tiers_and_not_parked(tmp_path: Path) -> None:
    save_memory(tmp_path, ["delta", "gated_delta"], vocab_size=VOCAB)
    save_tokenizer(tmp_path)
    arguments = TWO, "--prompt", "x", "--set", f"model.target={tmp_path}", "--set", "speculation.drafter=ngram"
    tiers = ["--set", "tiers.verifier.hbm=64MiB"]
    assert "run the model without tiers" in refused(*arguments, *tiers)
    said = refused(*arguments, "--park", str(tmp_path / "parked"))
    assert "has layers with a state of constant size, which is not parked; run it without --park" in said


def test_a_rank_without_attention_has_no_tiers(tmp_path: Path) -> None:
    save_memory(tmp_path, ["attention", "gated_delta"], vocab_size=VOCAB)
    save_tokenizer(tmp_path)
    models = ["--set", f"model.target={tmp_path}", "--set", "speculation.drafter=ngram"]
    said = refused(THREE, "--prompt", "x", *models, "--set", "tiers.verifier.hbm=64MiB")
    assert "rank 1 of the group holds no attention layer, and so no KV; lower groups.verifier.ranks" in said


def test_experts_and_deterministic(tmp_path: Path) -> None:
    few = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    said = refused(*target(tmp_path, "qwen3_moe", **few), "--set", "deterministic=true")
    assert "has experts" in said and "add --set speculation.rows=1, or leave deterministic out" in said


def test_a_token_beyond_the_embedding(tmp_path: Path) -> None:
    arguments = target(tmp_path, "llama")
    save_random("llama", tmp_path, vocab_size=40)
    said = refused(*arguments)
    assert "prompt 0 has the token" in said and "has 40 tokens; put the tokenizer of this model into its folder" in said


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "dynamic"}, 64),
        ({"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
          "original_max_position_embeddings": 32}, 32),
    ],
)  # fmt: skip
def test_positions_where_frequencies_begin_to_depend_on_the_length(
    rope: dict[str, Any], limit: int, tmp_path: Path
) -> None:
    arguments = target(tmp_path, "llama", max_position_embeddings=64, rope_parameters=ROPE | rope)
    said = refused(*arguments, "--max-tokens", str(limit))
    assert f"takes {limit}; ask for fewer or shorten it" in said
