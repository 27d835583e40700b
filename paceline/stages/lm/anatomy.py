"""The parts of a Transformers causal language model, found by what they are and not by model type."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from paceline.stages.lm.folder import ModelFolderError

__all__ = ["Anatomy", "Part"]


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
        depth = getattr(model.config.get_text_config(), "num_hidden_layers", None)
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
        if missing or head_name is None or not layers:
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


def _role(name: str, child: nn.Module, embedding: object, depth: object) -> str | None:
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
