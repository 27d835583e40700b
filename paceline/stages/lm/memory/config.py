"""The configuration of a language model with memory layers (`model_type: memory_lm`)."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, LlamaConfig

__all__ = ["ATTENTION", "KINDS", "MemoryLMConfig"]

ATTENTION = "attention"
KINDS = ("gated_delta", "delta", "linear", "ttt_linear", ATTENTION)
"""What a layer may be."""


@strict
class MemoryLMConfig(LlamaConfig):
    """A Llama whose layers are of the kinds that `layer_kinds` names; the keys of `LlamaConfig` hold for all else.

    `memory_heads`, `memory_key_size` and `memory_value_size` are the sizes of the state of a memory layer,
    `memory_conv` the tokens that its short convolution sees, and `ttt_batch` those of a mini-batch of TTT-Linear.
    """

    model_type = "memory_lm"

    layer_kinds: list[str] | None = None
    """By layer; None: `gated_delta` everywhere."""
    memory_heads: int = 2
    memory_key_size: int = 32
    memory_value_size: int = 32
    memory_conv: int = 4
    ttt_batch: int = 16
    max_position_embeddings: int | None = None  # type: ignore[assignment]
    """None: memory layers alone have no limit."""
    use_cache: bool = False

    def __post_init__(self, **kwargs: object) -> None:
        if self.layer_kinds is None:
            self.layer_kinds = [KINDS[0]] * self.num_hidden_layers
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        self._check()

    def _check(self) -> None:
        kinds = self.layer_kinds or []
        if len(kinds) != self.num_hidden_layers:
            raise ValueError(
                f"layer_kinds names {len(kinds)} layers and num_hidden_layers is {self.num_hidden_layers}; name one "
                "kind for each layer"
            )
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown:
            raise ValueError(f"layer_kinds has {unknown[0]!r}; a layer is one of {', '.join(KINDS)}")
        if "ttt_linear" in kinds and self.memory_key_size != self.memory_value_size:
            raise ValueError(
                f"memory_key_size is {self.memory_key_size} and memory_value_size {self.memory_value_size}; "
                "ttt_linear maps keys to values of the same size"
            )
        if ATTENTION in kinds and self.max_position_embeddings is None:
            raise ValueError(
                "max_position_embeddings is missing; name the positions that the attention layers were trained for"
            )
        sizes = ("memory_heads", "memory_key_size", "memory_value_size", "memory_conv", "ttt_batch")
        small = [name for name in sizes if getattr(self, name) < 1]
        if small:
            raise ValueError(f"{small[0]} is {getattr(self, small[0])}; it has to be at least 1")


AutoConfig.register(MemoryLMConfig.model_type, MemoryLMConfig)
