"""Runs of layers: an even cut, only the weights that are needed, and one after the other the whole model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from paceline.stages.lm.decoder import Decoder
from paceline.stages.lm.folder import ModelFolderError
from paceline.stages.lm.layer_run import even_runs

from .conftest import Saved
from .models import save_random, tokens


@given(layers=st.integers(1, 100), data=st.data())
def test_an_even_cut(layers: int, data: st.DataObject) -> None:
    parts = data.draw(st.integers(1, layers))
    runs = even_runs(layers, parts)
    assert [layer for first, last in runs for layer in range(first, last)] == list(range(layers))
    lengths = [last - first for first, last in runs]
    assert len(runs) == parts and max(lengths) - min(lengths) <= 1 and lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("parts", [0, 4])
def test_no_cut_into_so_many(parts: int) -> None:
    with pytest.raises(ValueError, match=f"3 layers can't be cut into {parts} runs"):
        even_runs(3, parts)


@pytest.mark.parametrize("parts", [2, 3])
def test_runs_one_after_the_other_are_the_whole_bit_for_bit(saved: Saved, parts: int) -> None:
    """Also packed: two sequences of different length in every forward."""
    whole = Decoder.load(saved.folder)
    runs = [Decoder.load(saved.folder, layers=run) for run in even_runs(3, parts)]
    assert [(run.first, run.last) for run in runs] == [(i == 0, i == parts - 1) for i in range(parts)]
    opened = [(run.open(), run.open()) for run in runs]
    mine = (whole.open(), whole.open())
    for one, two in ((tokens(13), tokens(5, 1)), (tokens(1, 2), tokens(8, 3)), (tokens(4, 4), tokens(1, 5))):
        given = [one, two]
        for run, sequences in zip(runs, opened, strict=True):
            given = run.forward(list(zip(sequences, given, strict=True)))
        expected = whole.forward(list(zip(mine, (one, two), strict=True)))
        assert all(torch.equal(a, b) for a, b in zip(given, expected, strict=True))


def test_a_later_run_takes_hidden_states(llama: Saved) -> None:
    run = Decoder.load(llama.folder, layers=(1, 3))
    sequence = run.open()
    with pytest.raises(ValueError, match=r"takes hidden states \[n, 32\]"):
        run.forward([(sequence, tokens(3))])
    with pytest.raises(ValueError, match=r"takes hidden states \[n, 32\]"):
        run.forward([(sequence, torch.zeros(3, 31))])


def test_only_the_weights_of_the_run_are_read(saved: Saved, tmp_path: Path) -> None:
    """A checkpoint without the last layer and the norm is enough for the run before them."""
    kind = saved.model.config.model_type
    save_random(kind, tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    dropped = ("layers.2.", "h.2.", "model.norm", "ln_f")
    kept = {name: w for name, w in weights.items() if not any(part in name for part in dropped)}
    assert len(kept) < len(weights)
    save_file(kept, file, {"format": "pt"})
    first = Decoder.load(tmp_path, layers=(0, 2))
    whole = Decoder.load(saved.folder, layers=(0, 2))
    assert torch.equal(first.forward([(first.open(), tokens(9))])[0], whole.forward([(whole.open(), tokens(9))])[0])
    with pytest.raises(ModelFolderError, match="holds no weight"):
        Decoder.load(tmp_path, layers=(1, 3))


def test_every_weight_is_held_once(saved: Saved) -> None:
    """By one of the runs; only a head tied to the embedding is held on both ranks, where these are two."""
    whole = Decoder.load(saved.folder)
    weights = list(saved.model.parameters())
    assert whole.weight_bytes == sum(weight.nbytes for weight in weights)
    runs = [Decoder.load(saved.folder, layers=run) for run in even_runs(3, 3)]
    tied = saved.model.get_input_embeddings().weight is saved.model.get_output_embeddings().weight
    twice = saved.model.get_output_embeddings().weight.nbytes if tied else 0
    assert tied == (saved.model.config.model_type == "gpt2")
    assert sum(run.weight_bytes for run in runs) == whole.weight_bytes + twice


def test_a_run_that_does_not_exist(llama: Saved) -> None:
    with pytest.raises(ModelFolderError, match=r"has layers 0 to 2; a run \[1, 4\) is not among them"):
        Decoder.load(llama.folder, layers=(1, 4))
