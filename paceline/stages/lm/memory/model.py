"""A causal language model with memory layers, as Transformers knows it: a Llama with some or all attention replaced.

Importing this module registers `memory_lm`, so that `AutoModelForCausalLM` reads its folders, which are like any other:
`config.json`, safetensors and a tokenizer.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM, LlamaForCausalLM, LlamaModel

from paceline.stages.lm.memory.config import ATTENTION, MemoryLMConfig
from paceline.stages.lm.memory.mixer import MemoryMixer

__all__ = ["MemoryLM", "MemoryLMModel"]


class MemoryLMModel(LlamaModel):  # type: ignore[no-untyped-call]
    """Embedding, layers and norm."""

    config_class = MemoryLMConfig

    def __init__(self, config: MemoryLMConfig) -> None:
        super().__init__(config)
        for index, kind in enumerate(config.layer_kinds or []):
            if kind != ATTENTION:
                layer: Any = self.layers[index]
                layer.self_attn = MemoryMixer(config, index, kind)
        self.post_init()  # type: ignore[no-untyped-call]


class MemoryLM(LlamaForCausalLM):  # type: ignore[no-untyped-call]
    """With a head. Its own forward computes whole sequences from their beginning; it has no cache."""

    config_class = MemoryLMConfig

    def __init__(self, config: MemoryLMConfig) -> None:
        super().__init__(config)
        self.model = MemoryLMModel(config)
        self.post_init()  # type: ignore[no-untyped-call]


_AUTO: Any = AutoModelForCausalLM
_AUTO.register(MemoryLMConfig, MemoryLM)
