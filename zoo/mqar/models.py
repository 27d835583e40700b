"""The models: two layers of one kind, or one with memory and one with attention; and the folders that hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from paceline.stages.lm.memory.config import ATTENTION, MemoryLMConfig
from paceline.stages.lm.memory.mixer import MemoryMixer
from paceline.stages.lm.memory.model import MemoryLM
from zoo.folder import write_model
from zoo.mqar.recall import END_ID, UNKNOWN_ID, VOCABULARY, vocabulary

__all__ = ["HYBRID", "KINDS", "Shape", "build", "publish"]

HYBRID = "hybrid"
KINDS = ("gated_delta", "delta", "linear", "ttt_linear", HYBRID, ATTENTION)
"""What a model may be; `hybrid` has a layer of `gated_delta` and one of `attention`."""

_LONGEST = 512
"""Positions that a folder with attention promises; a model with memory layers alone has no limit."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a network: the kind of its layers, and keys and values of a head of its memory."""

    kind: str = "gated_delta"
    size: int = 32
    width: int = 64
    layers: int = 2
    heads: int = 2
    inner: int = 128
    ttt_batch: int = 16

    def config(self) -> MemoryLMConfig:
        """The same as a configuration; embedding and output share one matrix."""
        return MemoryLMConfig(
            vocab_size=VOCABULARY,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.inner,
            layer_kinds=self.layer_kinds,
            memory_heads=self.heads,
            memory_key_size=self.size,
            memory_value_size=self.size,
            ttt_batch=self.ttt_batch,
            max_position_embeddings=_LONGEST if ATTENTION in self.layer_kinds else None,
            tie_word_embeddings=True,
            bos_token_id=END_ID,
            eos_token_id=END_ID,
            pad_token_id=END_ID,
        )

    @property
    def layer_kinds(self) -> list[str]:
        """By layer."""
        return [KINDS[0], ATTENTION] if self.kind == HYBRID else [self.kind] * self.layers

    @property
    def state_bytes(self) -> int:
        """Bytes of what the rules hold for one sequence, in all layers; attention, whose KV grows, adds nothing. What
        the convolutions see is not counted."""
        heads = self.heads * sum(kind != ATTENTION for kind in self.layer_kinds)
        # TTT-Linear has a bias, and sums for both within a mini-batch.
        return 4 * heads * self.size * (2 * (self.size + 1) if self.kind == "ttt_linear" else self.size)


def build(shape: Shape, seed: int) -> MemoryLM:
    """A network with first weights drawn from the seed, in float32.

    The search for weights by which keys meet queries takes most of the training of such models. So keys and queries of
    memory layers begin with one projection, as the authors of TTT-Linear have it throughout, and with convolutions by
    which a query is of its own token and a key of the one before.
    """
    with torch.random.fork_rng():  # Transformers draws first weights from the global generator
        torch.manual_seed(seed)
        model = MemoryLM(shape.config())
    for module in model.modules():
        if isinstance(module, MemoryMixer):
            _begin(module, shape.heads * shape.size)
    return model


@torch.no_grad()
def _begin(mixer: MemoryMixer, keys: int) -> None:
    query, key, value = slice(0, keys), slice(keys, 2 * keys), slice(2 * keys, None)
    mixer.in_proj.weight[query] = mixer.in_proj.weight[key]
    mixer.conv.mul_(0.2)
    mixer.conv[-1, query] += 1
    mixer.conv[-2, key] += 1
    mixer.conv[-1, value] += 1


def publish(shape: Shape, weights: Mapping[str, Tensor], folder: Path, metadata: Mapping[str, str]) -> None:
    """Write a folder that `paceline generate` reads; the weights last and atomically, in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    _save_tokenizer(folder)
    config: dict[str, Any] = shape.config().to_dict() | {"architectures": ["MemoryLM"], "dtype": "float32"}
    generation = {"bos_token_id": END_ID, "eos_token_id": END_ID, "pad_token_id": END_ID, "do_sample": False}
    write_model(folder, config, generation, weights, {"shape": json.dumps(asdict(shape)), **metadata})


def _save_tokenizer(folder: Path) -> None:
    words = vocabulary()
    names = {number: word for word, number in words.items()}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=names[UNKNOWN_ID]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([names[END_ID], names[UNKNOWN_ID]])
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=False) + "\n", encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": names[END_ID],
        "eos_token": names[END_ID],
        "pad_token": names[END_ID],
        "unk_token": names[UNKNOWN_ID],
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
