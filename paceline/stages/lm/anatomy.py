"""The parts of a Transformers causal language model, found by what they are and not by model type."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from paceline.stages.lm.folder import ModelFolderError

__all__ = ["Anatomy", "Part", "kv_shape_of", "windows_of"]


@dataclass(frozen=True, slots=True)
class Part:
    """A module and its full name, under which its weights are stored."""

    name: str
    module: Any


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Embedding, layers, final norm and head of a model, with what gives positions: a rotary table or an embedding."""

    embedding: Part
    positions: Part | None
    rotary: Part | None
    layers: tuple[Part, ...]
    layers_name: str
    norm: Part
    head: Part

    @classmethod
    def of(cls, model: Any) -> Anatomy:
        """Take a model apart. Raises `ModelFolderError` where a part is missing, or there is one that is not known."""
        kind = type(model).__name__
        prefix = str(model.base_model_prefix)
        base = getattr(model, prefix, None)
        if not isinstance(base, nn.Module):
            raise ModelFolderError(_odd(kind, "it has no base model"))
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        depth = int(model.config.num_hidden_layers)
        found: dict[str, Part] = {}
        layers: nn.ModuleList | None = None
        for name, child in base.named_children():
            part = Part(f"{prefix}.{name}", child)
            role = _role(name, child, embedding, depth)
            if role is None:
                continue
            if role in found or role == "unknown":
                raise ModelFolderError(_odd(kind, f"its part `{part.name}` ({type(child).__name__}) has no known role"))
            found[role] = part
            if isinstance(child, nn.ModuleList):
                layers = child
        missing = [role for role in ("embedding", "layers", "norm") if role not in found]
        head_name = next((name for name, child in model.named_children() if child is head), None)
        if missing or head_name is None or layers is None:
            raise ModelFolderError(_odd(kind, f"no {missing[0] if missing else 'head'} was found"))
        stem = found["layers"].name
        return cls(
            embedding=found["embedding"],
            positions=found.get("positions"),
            rotary=found.get("rotary"),
            layers=tuple(Part(f"{stem}.{index}", layer) for index, layer in enumerate(layers)),
            layers_name=stem.removeprefix(f"{prefix}."),
            norm=found["norm"],
            head=Part(head_name, head),
        )

    def needed(self, layers: range) -> Iterator[Part]:
        """The parts that a run of layers computes with."""
        if layers.start == 0:
            yield self.embedding
            if self.positions is not None:
                yield self.positions
        if self.rotary is not None:
            yield self.rotary
        yield from (self.layers[index] for index in layers)
        if layers.stop == len(self.layers):
            yield self.norm
            yield self.head


def _role(name: str, child: nn.Module, embedding: object, depth: int) -> str | None:
    if child is embedding:
        return "embedding"
    if isinstance(child, nn.ModuleList) and len(child) == depth:
        return "layers"
    if "rotary" in name:
        return "rotary"
    if "Norm" in type(child).__name__:
        return "norm"
    if isinstance(child, nn.Embedding):
        return "positions"
    if next(child.parameters(), None) is None and next(child.buffers(), None) is None:
        return None  # dropout and the like: nothing in evaluation
    return "unknown"


def _odd(kind: str, why: str) -> str:
    return f"{kind} is built in a way that is not understood: {why}; Llama, Qwen3, GPT-2 and models of their build run"


def windows_of(config: Any) -> tuple[int | None, ...]:
    """By layer, how many keys a query sees, itself included (sliding window); None: all.

    Raises `ModelFolderError` for layers that are neither full nor sliding attention.
    """
    depth = int(config.num_hidden_layers)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        return (None if window is None else int(window),) * depth
    odd = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if odd:
        raise ModelFolderError(
            f"`{config.model_type}` has layers of kind {', '.join(odd)}; only full_attention and sliding_attention run"
        )
    if "sliding_attention" in kinds and window is None:
        raise ModelFolderError("config.json names sliding_attention layers but no sliding_window; it can't be meant so")
    width = None if window is None else int(window)
    return tuple(width if kind == "sliding_attention" else None for kind in kinds)


def kv_shape_of(config: Any) -> tuple[int, int]:
    """KV heads of a layer, and the size of one head, by the configuration."""
    heads = int(config.num_attention_heads)
    size = getattr(config, "head_dim", None) or int(config.hidden_size) // heads
    return int(getattr(config, "num_key_value_heads", None) or heads), int(size)
