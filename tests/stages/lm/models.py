"""Small random models saved as a user would have them: a folder with config.json and safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

VOCAB = 97
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,  # large enough that every input matters
}
GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}


def save_random(kind: str, folder: Path, **changes: Any) -> Any:
    """A random model of a Transformers model type, in evaluation mode with eager attention, saved into a folder."""
    config = CONFIG_MAPPING[kind](**((GPT2 if kind == "gpt2" else SMALL) | changes))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.eval().requires_grad_(False).save_pretrained(folder)
    return model


def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Transformers' own logits `[n, V]`."""
    with torch.inference_mode():
        found: torch.Tensor = model(ids[None], use_cache=False).logits[0]
    return found


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    """Random token ids."""
    return torch.randint(0, VOCAB, (count,), generator=torch.Generator().manual_seed(seed))
