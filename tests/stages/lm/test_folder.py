"""A folder that can't run says why and what to do, before any weight is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config

from paceline.stages.lm.decoder import Decoder
from paceline.stages.lm.folder import ModelFolder, ModelFolderError

from .conftest import Saved
from .models import save_random, tokens


@pytest.fixture
def folder(llama: Saved, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama.folder, tmp_path / "model"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def unknown_type(folder: Path) -> None:
    edit(folder / "config.json", model_type="never-heard-of-it")


def remote_code(folder: Path) -> None:
    # If it ran, it would fail in another way.
    (folder / "odd.py").write_text("raise SystemExit('code of the folder ran')")
    edit(folder / "config.json", model_type="odd", auto_map={"AutoConfig": "odd.OddConfig"})


def encoder_decoder(folder: Path) -> None:
    T5Config(vocab_size=97).save_pretrained(folder)


def no_language_model(folder: Path) -> None:
    edit(folder / "config.json", model_type="vit")


def quantised(folder: Path) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def torn_weights(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(5000)


def another_shape(folder: Path) -> None:
    edit(folder / "config.json", intermediate_size=72)


def missing_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.filterwarnings("ignore")  # Transformers' own, about the configurations broken here
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (shutil.rmtree, "no such folder; download the model first"),
        (no_config, "has no config.json; give the folder that `save_pretrained` wrote"),
        (broken_config, "can't be read as JSON"),
        (unknown_type, r"Transformers can't use it \(model_type `never-heard-of-it`\)"),
        (remote_code, "needs code of its own .* which is never run"),
        (encoder_decoder, "`t5` is an encoder-decoder; give a decoder-only language model"),
        (no_language_model, "no causal language model for `vit`"),
        (quantised, "its weights are quantised; give the folder of the unquantised model"),
        (pickled, r"its weights are pickled \(pytorch_model.bin\), and pickle runs code; convert them to safetensors"),
        (no_weights, r"holds no \*.safetensors; download the weights too"),
        (torn_weights, "can't be read .*; download it again"),
        (another_shape, "the two files are not of the same model"),
        (missing_weight, r"holds no weight `model.layers.1.mlp.up_proj.weight` \(1 are missing\)"),
    ],
)
def test_what_is_wrong_with_a_folder(folder: Path, harm: Callable[[Path], None], message: str) -> None:
    harm(folder)
    with pytest.raises(ModelFolderError, match=message):
        Decoder.load(folder)


def test_loading_is_quiet_and_leaves_the_generator_alone(saved: Saved, capfd: pytest.CaptureFixture[str]) -> None:
    before = torch.random.get_rng_state()
    Decoder.load(saved.folder)
    assert torch.equal(before, torch.random.get_rng_state())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_weights_in_several_files(kind: str, tmp_path: Path) -> None:
    model = save_random(kind, tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    one, many = (Decoder.load(tmp_path / name) for name in ("one", "many"))
    assert torch.equal(one.forward([(one.open(), tokens(5))])[0], many.forward([(many.open(), tokens(5))])[0])
    next((tmp_path / "many").glob("*-00001-*")).unlink()
    with pytest.raises(ModelFolderError, match=r"model-00001-of-\d+.safetensors named in .*index.json is missing"):
        Decoder.load(tmp_path / "many")


def test_weights_of_a_bare_base_model(tmp_path: Path) -> None:
    """As the first GPT-2 was published: names without the prefix, and the head not stored as it is tied."""
    whole = save_random("gpt2", tmp_path / "whole")
    whole.transformer.save_pretrained(tmp_path / "base")
    edit(tmp_path / "base" / "config.json", architectures=["GPT2LMHeadModel"])
    one, two = (Decoder.load(tmp_path / name) for name in ("whole", "base"))
    assert torch.equal(one.forward([(one.open(), tokens(5))])[0], two.forward([(two.open(), tokens(5))])[0])


def test_which_tokens_end_a_text(folder: Path) -> None:
    assert ModelFolder.read(folder).eos_ids == {2}
    edit(folder / "generation_config.json", eos_token_id=[5, 7])
    assert ModelFolder.read(folder).eos_ids == {5, 7}
    (folder / "generation_config.json").unlink()
    assert ModelFolder.read(folder).eos_ids == {2}
    edit(folder / "config.json", eos_token_id=None)
    assert ModelFolder.read(folder).eos_ids == frozenset()
