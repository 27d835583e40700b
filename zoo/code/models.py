"""The two models: Llama networks small enough that a CPU core trains them in less than an hour.

They are plain `transformers.LlamaForCausalLM`, and a folder holds what any such model's folder holds, so nothing of
ours is needed to load one: `AutoModelForCausalLM.from_pretrained(folder)`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from zoo.code.tokenizer import END_ID, VOCABULARY, save_tokenizer
from zoo.folder import frozen, write_model

__all__ = ["DRAFT", "TARGET", "Shape", "build", "load", "publish"]

LONGEST = 1024  # positions that a published folder promises; training reads half as many


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a network: `width` of the residual stream, `inner` width of the gated layer; head width 64 fits all."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int = VOCABULARY

    def config(self) -> LlamaConfig:
        """The same as Transformers' configuration; embedding and output share one matrix."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            intermediate_size=self.inner,
            max_position_embeddings=LONGEST,
            tie_word_embeddings=True,
            bos_token_id=END_ID,
            eos_token_id=END_ID,
            pad_token_id=END_ID,
        )


TARGET = Shape(width=192, layers=6, heads=3, kv_heads=1, inner=512)
DRAFT = Shape(width=128, layers=2, heads=2, kv_heads=1, inner=384)


def build(shape: Shape, seed: int, device: str = "cpu") -> LlamaForCausalLM:
    """A network with first weights drawn from the seed, in float32."""
    with torch.random.fork_rng():  # Transformers draws first weights from the global generator
        torch.manual_seed(seed)
        model = LlamaForCausalLM(shape.config())
    nn.Module.to(model, device)  # Transformers' own `to` is typed for strings by mistake
    return model


def publish(
    shape: Shape, weights: Mapping[str, torch.Tensor], tokenizer: Tokenizer, folder: Path, metadata: Mapping[str, str]
) -> None:
    """Write a folder that Transformers loads; the weights last and atomically, rounded to bfloat16 to halve the file.

    `weights` is a state dict of `build(shape, ...)`; `metadata` goes into the head of the safetensors file.
    """
    save_tokenizer(tokenizer, folder, LONGEST)
    config: dict[str, Any] = shape.config().to_dict()
    config |= {"architectures": ["LlamaForCausalLM"], "dtype": "float32"}
    generation = {
        "bos_token_id": END_ID,
        "eos_token_id": END_ID,
        "pad_token_id": END_ID,
        "do_sample": True,
        "temperature": 0.7,
    }
    write_model(folder, config, generation, weights, {"shape": json.dumps(asdict(shape)), **metadata})


def load(folder: Path, device: str = "cpu") -> LlamaForCausalLM:
    """A published model in float32, ready to run and without gradients.

    Raises `FileNotFoundError` where the folder holds no weights.
    """
    path = folder / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; train it, or give a folder that holds a model")
    config = LlamaConfig.from_json_file(str(folder / "config.json"))
    with torch.random.fork_rng():
        model = LlamaForCausalLM(config)
    tensors = {name: value.float() for name, value in load_file(str(path)).items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict(tensors)
    nn.Module.to(model, device)
    return frozen(model)
