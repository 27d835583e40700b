"""However a model is loaded, it is the one that Transformers loads from the same files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from paceline.pipeline.tiers import TierSpec
from paceline.stages.lm import loader
from paceline.stages.lm.blueprint import Blueprint
from paceline.stages.lm.decoder import Decoder
from paceline.stages.lm.folder import ModelFolderError
from paceline.stages.lm.rank_tiers import RankTiers

from .models import logits_of, save_random, tokens

Weights = dict[str, torch.Tensor]
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def another_head(weights: Weights) -> None:
    weights[HEAD] = weights[EMBEDDING].flip(0).contiguous()


def the_same_head(weights: Weights) -> None:
    weights[HEAD] = weights[EMBEDDING].clone()


def head_for_both(weights: Weights) -> None:
    weights[HEAD] = weights.pop(EMBEDDING)


def names_without_prefix(weights: Weights) -> None:
    for name in [name for name in weights if name.startswith("model.")]:
        weights[name.removeprefix("model.")] = weights.pop(name)


def more_than_is_needed(weights: Weights) -> None:
    weights["model.layers.7.mlp.up_proj.weight"] = torch.zeros(64, 32)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)


def other_types(weights: Weights) -> None:
    for name in list(weights)[::2]:
        weights[name] = weights[name].to(torch.bfloat16)


def in_several_files(weights: Weights, folder: Path) -> None:
    names = sorted(weights)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in halves.items():
        save_file({name: weights[name] for name in held}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, held in halves.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def change(folder: Path, how: Callable[[Weights], None], several: bool = False) -> Any:
    """Change what is stored; gives what Transformers makes of it."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    how(weights)
    if several:
        in_several_files(weights, folder)
    else:
        save_file(weights, file, {"format": "pt"})
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval().float()


def check(folder: Path, model: Any) -> None:
    """One rank, the serial reference's tiles, over tiers, and runs of two and three."""
    ids = tokens(20)
    theirs = logits_of(model, ids)
    spec = TierSpec(hbm=2 * 3 * 2 * 2 * 8 * 4 * 4, dram="1MiB", block_size=4)
    for options in ({}, {"rows": 8}, {"tiers": RankTiers(spec, "one")}):
        decoder = Decoder.load(folder, **options)
        assert_close(decoder.forward([(decoder.open(), ids)])[0], theirs, atol=2e-5, rtol=0)
        if decoder.tiers is not None:
            decoder.tiers.close()
    for cuts in (((0, 2), (2, 3)), ((0, 1), (1, 2), (2, 3))):
        given = ids
        for layers in cuts:
            run = Decoder.load(folder, layers=layers)
            given = run.forward([(run.open(), given)])[0]
        assert_close(given, theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("several", [False, True], ids=["one file", "two files"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "how", [another_head, the_same_head, head_for_both, names_without_prefix, more_than_is_needed, other_types]
)
def test_every_way_gives_transformers_model(
    how: Callable[[Weights], None], tied: bool, several: bool, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    save_random("llama", tmp_path, tie_word_embeddings=tied)
    if how is head_for_both and not tied:
        with pytest.raises(ModelFolderError, match=r"holds no weight `model.embed_tokens.weight` \(1 are missing\)"):
            weights = load_file(tmp_path / "model.safetensors")
            how(weights)
            save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
            Decoder.load(tmp_path, layers=(0, 1))
        return
    check(tmp_path, change(tmp_path, how, several))


def test_what_the_configuration_says_of_the_tie_is_not_what_is_stored(tmp_path: Path) -> None:
    """The stored head counts, as it does for Transformers; a tied one would give other tokens."""
    save_random("llama", tmp_path, tie_word_embeddings=True)
    model = change(tmp_path, another_head)
    tied = save_random("llama", tmp_path / "tied", tie_word_embeddings=True)
    assert not torch.allclose(logits_of(model, tokens(9)), logits_of(tied, tokens(9)))
    last = Decoder.load(tmp_path, layers=(2, 3))
    stored = load_file(tmp_path / "model.safetensors")[HEAD]
    assert torch.equal(last._run._head.weight, stored)
    assert last.weight_bytes < Decoder.load(tmp_path).weight_bytes


def test_a_tied_pair_is_held_once_and_read_where_it_is_needed(tmp_path: Path) -> None:
    save_random("llama", tmp_path, tie_word_embeddings=True)
    whole, last = Decoder.load(tmp_path), Decoder.load(tmp_path, layers=(2, 3))
    assert whole._run._head.weight is whole._run._embedding.weight
    assert torch.equal(last._run._head.weight, whole._run._head.weight)


def test_the_check_reads_the_files_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader that ties what is not tied is found out, on every run that has a head."""
    save_random("llama", tmp_path, tie_word_embeddings=True)
    change(tmp_path, another_head)
    fill = loader.WeightFiles.fill

    def tying(files: Any, model: Any, device: torch.device) -> None:
        fill(files, model, device)
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.roll(1, 0), requires_grad=False)

    monkeypatch.setattr(loader.WeightFiles, "fill", tying)
    for layers in (None, (2, 3)):
        with pytest.raises(ModelFolderError, match="does more than call its layers"):
            Decoder.load(tmp_path, layers=layers)


@pytest.mark.parametrize(
    ("kind", "stray"),
    [
        ("gpt2", {"num_key_value_heads": 2, "head_dim": 64, "sliding_window": 3, "layer_types": ["conv"] * 3}),
        ("gpt2", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 16}}),
        ("gpt_neox", {"num_key_value_heads": 2, "sliding_window": 3, "n_head": 2}),
        ("llama", {"sliding_window": 4, "n_head": 2, "layer_types": ["sliding_attention"] * 3, "is_decoder": False}),
        ("llama", {"num_experts": 4, "d_model": 99, "n_layer": 5, "vocabulary": 7}),
        ("mistral", {"layer_types": ["full_attention"] * 3, "sliding_window": 5}),
        ("qwen2", {"sliding_window": 4}),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_keys_that_the_class_ignores_are_ignored(kind: str, stray: dict[str, Any], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    save_random(kind, tmp_path, **({"max_position_embeddings": 64} if kind != "gpt2" else {}))
    edit(tmp_path / "config.json", **stray)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    ids = tokens(30)
    theirs = logits_of(model, ids)
    plan = Blueprint.read(tmp_path)
    heads, size = plan.kv_shape
    # What the modules say: what leaves the projection of the keys.
    assert (heads, size) == ((4, 8) if kind in ("gpt2", "gpt_neox") else (2, 8))
    assert plan.max_positions == (128 if kind == "gpt2" else 64)
    spec = TierSpec(hbm=3 * 2 * 2 * heads * size * 4 * 4, dram="1MiB", block_size=4)
    decoder = Decoder.load(tmp_path, tiers=RankTiers(spec, "one"))
    sequence = decoder.open()
    ours = torch.cat([decoder.forward([(sequence, part)])[0] for part in ids.split([9, 1, 20])])
    assert_close(ours, theirs, atol=2e-5, rtol=0)
    assert decoder.tiers is not None
    decoder.tiers.close()


def test_a_window_that_no_check_outruns_is_the_one_of_the_class(tmp_path: Path) -> None:
    """Qwen-2 slides only where it is told to, and Llama never does, whatever its configuration names."""
    save_random("qwen2", tmp_path / "on", use_sliding_window=True, sliding_window=100, max_window_layers=1)
    assert [each.window for each in Blueprint.read(tmp_path / "on").traits] == [None, 100, 100]
    save_random("qwen2", tmp_path / "off", use_sliding_window=False, sliding_window=100)
    assert [each.window for each in Blueprint.read(tmp_path / "off").traits] == [None] * 3
    save_random("llama", tmp_path / "llama")
    edit(tmp_path / "llama" / "config.json", sliding_window=100)
    assert [each.window for each in Blueprint.read(tmp_path / "llama").traits] == [None] * 3


def test_attention_in_both_directions_is_refused(tmp_path: Path) -> None:
    save_random("llama", tmp_path)
    edit(tmp_path / "config.json", is_causal=False)
    with pytest.raises(ModelFolderError, match="has a mask that is neither causal nor a sliding window"):
        Blueprint.read(tmp_path)
