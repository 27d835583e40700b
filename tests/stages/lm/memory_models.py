"""Small random models with memory layers, saved as a user would have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from paceline.stages.lm.memory.config import ATTENTION, MemoryLMConfig
from paceline.stages.lm.memory.model import MemoryLM

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "memory_key_size": 8,
    "memory_value_size": 8,
    "ttt_batch": 5,
    "initializer_range": 0.2,  # large enough that every input matters
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def save_memory(folder: Path, kinds: list[str], **changes: Any) -> MemoryLM:
    """A random model with layers of these kinds, in evaluation mode, saved into a folder."""
    limit = {"max_position_embeddings": 512} if ATTENTION in kinds else {}
    config = MemoryLMConfig(num_hidden_layers=len(kinds), layer_kinds=kinds, **(SIZES | limit | changes))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = MemoryLM(config)
    torch.nn.Module.eval(model)
    model.requires_grad_(False).save_pretrained(folder)
    return model
