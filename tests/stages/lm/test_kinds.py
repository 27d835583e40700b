"""Other models: those that run give Transformers' logits; those that would run wrongly are refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from paceline.stages.lm.attention import Pass, Segment
from paceline.stages.lm.decoder import Decoder
from paceline.stages.lm.folder import ModelFolderError
from paceline.stages.lm.sequence_kv import SequenceKV

from .conftest import Saved
from .models import logits_of, save_random, tokens

RUN: dict[str, tuple[str, dict[str, Any]]] = {
    "sliding in every layer": ("mistral", {"sliding_window": 7}),
    "sliding in some layers": ("qwen3", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "rotation by kind of layer": ("gemma3_text", {"sliding_window": 5}),
    "weights under other names": ("gpt_neox", {}),
    "experts": ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
    "scaled by the layer's number": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "arguments not handed on": ("stablelm", {}),
    "one fused projection": ("phi3", {}),
}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "multiplied embeddings": ("granite", {"embedding_multiplier": 3.0}, "does more than call its layers"),
    "scaled logits": ("cohere", {"logit_scale": 0.1}, "does more than call its layers"),
    "bent scores": ("gemma2", {}, "asks for `softcap`, which is not supported"),
    "attention sinks": ("gpt_oss", {"num_local_experts": 4}, "asks for `s_aux`, which is not supported"),
    "attention of its own": ("gptj", {"rotary_dim": 8}, "its attention is one of its own"),
    "another structure": ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}, "OPTDecoder.* has no known role"),
    "no attention": ("mamba", {}, "keeps its state in a way that is no KV cache"),
}


@pytest.mark.filterwarnings("ignore::UserWarning:transformers")
@pytest.mark.parametrize("name", RUN)
def test_runs_with_transformers_logits(name: str, tmp_path: Path) -> None:
    """Whole and in runs of layers; longer than every sliding window, in chunks that cross its border."""
    kind, changes = RUN[name]
    model = save_random(kind, tmp_path, **changes)
    whole = Decoder.load(tmp_path)
    ids = tokens(30)
    theirs = logits_of(model, ids)
    one, two = whole.open(), whole.open()
    ours = torch.cat([whole.forward([(one, part), (two, tokens(2, 7))])[0] for part in ids.split([3, 1, 9, 1, 16])])
    assert_close(ours, theirs, atol=2e-5, rtol=0)
    given = ids
    for layers in ((0, 2), (2, 3)):
        run = Decoder.load(tmp_path, layers=layers)
        given = run.forward([(run.open(), given)])[0]
    assert_close(given, theirs, atol=2e-5, rtol=0)
    if name == "experts":
        with pytest.raises(ValueError, match="the model has experts"):
            Decoder.load(tmp_path, rows=8)
    exact = Decoder.load(tmp_path, rows=1 if name == "experts" else 8)
    one, two = exact.open(), exact.open()
    parts = torch.cat([exact.forward([(one, part)])[0] for part in ids.split([3, 1, 9, 1, 16])])
    assert torch.equal(parts, exact.forward([(two, ids)])[0])
    assert_close(parts, theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_what_it_would_compute_wrongly(name: str, tmp_path: Path) -> None:
    kind, changes, message = REFUSED[name]
    save_random(kind, tmp_path, **changes)
    with pytest.raises(ModelFolderError, match=message):
        Decoder.load(tmp_path)


@pytest.mark.parametrize("layers", [(0, 1), (2, 3)], ids=["first", "last"])
def test_a_run_of_layers_is_checked_too(layers: tuple[int, int], tmp_path: Path) -> None:
    save_random("granite", tmp_path, embedding_multiplier=3.0, logits_scaling=2.0)
    with pytest.raises(ModelFolderError, match="does more than call its layers"):
        Decoder.load(tmp_path, layers=layers)


def test_frequencies_that_depend_on_the_length_end_where_they_begin_to(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    model = save_random("llama", tmp_path, rope_parameters=rope, max_position_embeddings=48)
    decoder = Decoder.load(tmp_path)
    assert decoder.max_positions == 48
    sequence = decoder.open()
    assert_close(decoder.forward([(sequence, tokens(48))])[0], logits_of(model, tokens(48)), atol=2e-5, rtol=0)


def test_half_precision_on_request(tmp_path: Path) -> None:
    model = save_random("llama", tmp_path).to(torch.bfloat16)
    decoder = Decoder.load(tmp_path, dtype=torch.bfloat16)
    logits = decoder.forward([(decoder.open(), tokens(20))])[0]
    assert decoder.dtype == torch.bfloat16 and logits.dtype == torch.float32
    theirs = logits_of(model, tokens(20)).float()
    assert float((logits - theirs).norm() / theirs.norm()) < 0.02  # a bfloat16 has eight bits


def test_attention_is_contiguous_however_many_sequences_are_in_a_pass(llama: Saved) -> None:
    """Models may call `view` on it."""
    decoder, seen = Decoder.load(llama.folder), []
    for module in decoder._run._layers[0].modules():
        if hasattr(module, "o_proj"):
            module.o_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0].is_contiguous()))
    kv = [SequenceKV(3), SequenceKV(3)]
    one, two = Segment(kv[0], 0, 4, 0), Segment(kv[1], 4, 3, 0)
    for segments in ([one], [one, two]):
        passed = Pass(segments, 0, [None] * 3)
        rows = 7 if len(segments) == 2 else 4
        passed.write(0, torch.randn(2, rows, 8), torch.randn(2, rows, 8))
        assert passed.attend(0, torch.randn(4, rows, 8), None).is_contiguous()
    decoder.forward([(decoder.open(), tokens(3)), (decoder.open(), tokens(5))])
    assert seen == [True]
