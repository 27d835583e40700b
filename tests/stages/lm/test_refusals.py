"""Models that can't run are refused from their folder alone: no weight is read, and the message says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING

from paceline.stages.lm.blueprint import Blueprint
from paceline.stages.lm.folder import ModelFolderError
from paceline.stages.lm.traits import LayerTraits, kv_shape_of

from .models import save_random
from .test_kinds import REFUSED


def only_a_configuration(kind: str, folder: Path) -> None:
    """A folder without weights that mean anything."""
    CONFIG_MAPPING[kind]().save_pretrained(folder)
    save_file({"nothing": torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.filterwarnings("ignore::UserWarning:transformers")
@pytest.mark.parametrize("name", REFUSED)
def test_before_a_weight_is_read(name: str, tmp_path: Path) -> None:
    kind, changes, message = REFUSED[name]
    save_random(kind, tmp_path, **changes)
    names = list(load_file(tmp_path / "model.safetensors"))
    # What the weights hold is of no importance yet.
    save_file({each: torch.zeros(1) for each in names}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelFolderError, match=message):
        Blueprint.read(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["gemma3", "llama4", "qwen3_5", "qwen3_5_moe", "gemma4", "mllama", "git", "fuyu"])
def test_nested_configurations(kind: str, tmp_path: Path) -> None:
    """Types that see or hear, whose language model is a part with a configuration of its own."""
    only_a_configuration(kind, tmp_path)
    with pytest.raises(ModelFolderError) as caught:
        Blueprint.read(tmp_path)
    said = str(caught.value)
    assert any(word in said for word in ("models built like", "of their build run", "give", "download")), said
    assert "object has no attribute" not in said


def test_pointers_in_the_place_of_weights(tmp_path: Path) -> None:
    save_random("llama", tmp_path)
    (tmp_path / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0123456789abcdef\nsize 4096\n"
    )
    with pytest.raises(ModelFolderError, match="is a pointer of Git LFS and not the weights; run `git lfs pull`"):
        Blueprint.read(tmp_path)


@pytest.mark.parametrize("length", [0, 4, 100, -8])
def test_truncated_weights(tmp_path: Path, length: int) -> None:
    save_random("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:length])
    with pytest.raises(ModelFolderError, match=r"model.safetensors: can't be read \(.*\); download it again"):
        Blueprint.read(tmp_path)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "qwen3_moe"])
def test_missing_and_misshapen_weights(tmp_path: Path, kind: str) -> None:
    more = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32} if kind == "qwen3_moe" else {}
    save_random(kind, tmp_path, **more)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    name = next(each for each in sorted(weights) if "layers.1" in each and each.endswith("weight"))
    save_file({each: weight for each, weight in weights.items() if each != name}, file, {"format": "pt"})
    with pytest.raises(ModelFolderError, match=r"holds no weight|can't be made of what is stored"):
        Blueprint.read(tmp_path)
    save_file(weights | {name: torch.zeros(3, 5)}, file, {"format": "pt"})
    with pytest.raises(ModelFolderError, match=r"of the same model|can't be made of what is stored"):
        Blueprint.read(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": 7}', '{"weight_map": {"a": "none"}}', "{"])
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    save_random("llama", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelFolderError, match="index"):
        Blueprint.read(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_attention_heads": 0}, {"hidden_size": 33}, {"num_hidden_layers": 0}, {"hidden_act": "none"},
        {"vocab_size": -1}, {"num_hidden_layers": "three"}, {"rope_parameters": {"rope_type": "odd"}},
        {"max_position_embeddings": None},
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_configurations_that_can_not_be(tmp_path: Path, wrong: dict[str, Any]) -> None:
    save_random("llama", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    with pytest.raises(ModelFolderError):
        Blueprint.read(tmp_path)


def test_blocks_of_kv_have_one_shape() -> None:
    one = LayerTraits(None, 2, 8, 8, False)
    assert kv_shape_of((one, one)) == (2, 8)
    with pytest.raises(ModelFolderError, match=r"2 heads of 8 and of 2 heads of 16.* run the model without tiers"):
        kv_shape_of((one, LayerTraits(None, 2, 16, 16, False)))
    with pytest.raises(ModelFolderError, match=r"keys have 12 numbers and its values 8.* run the model without tiers"):
        kv_shape_of((LayerTraits(None, 2, 12, 8, False),))
