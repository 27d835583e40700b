"""What a training step minimises: the next token's surprise, or the distance from the target's probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from zoo.code.attention import register
from zoo.code.batches import Windows
from zoo.code.distill import Teacher, divergence

__all__ = ["Imitation", "Language", "Objective", "fast", "surprise"]


class Objective(Protocol):
    """The loss of a step; `report` holds its figures for the log."""

    report: dict[str, float]

    def __call__(self, model: LlamaForCausalLM, step: int) -> Tensor: ...


def fast(model: LlamaForCausalLM, compiled: bool) -> LlamaForCausalLM:
    """Give a model the attention made for training, and compile its layers if asked (they share one compilation)."""
    model.set_attn_implementation(register())
    if compiled:
        for layer in model.model.layers:
            layer.compile()
    return model


def surprise(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean of −log p in nats, of logits `[B, T, V]` for tokens `[B, T]`."""
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())


def _rows(model: LlamaForCausalLM, tokens: Tensor) -> Tensor:
    """Hidden states `[B, T - 1, W]` whose logits predict the tokens from the second on."""
    hidden: Tensor = model.model(input_ids=tokens, use_cache=False).last_hidden_state
    return hidden[:, :-1]


def _language_loss(rows: Tensor, head: Tensor, tokens: Tensor) -> Tensor:
    return surprise(rows @ head.T, tokens)


class Language:
    """Predict the next token of every window."""

    def __init__(self, windows: Windows, bf16: bool, compiled: bool = False) -> None:
        self.windows, self.bf16, self.report = windows, bf16, dict[str, float]()
        self._loss: Callable[[Tensor, Tensor, Tensor], Tensor] = _language_loss
        if compiled:
            self._loss = torch.compile(_language_loss)

    def __call__(self, model: LlamaForCausalLM, step: int) -> Tensor:
        tokens = self.windows.at(step).to(model.device)
        with torch.autocast(model.device.type, torch.bfloat16, self.bf16):
            loss = self._loss(_rows(model, tokens), model.lm_head.weight, tokens[:, 1:])
        self.report = {"nats": float(loss.detach())}
        return loss


class Imitation:
    """Give each token the probability that the target gives it; `reader` is the target, made `fast`."""

    def __init__(self, teacher: Teacher, reader: LlamaForCausalLM, bf16: bool, compiled: bool = False) -> None:
        self.teacher, self.reader, self.bf16, self.report = teacher, reader, bf16, dict[str, float]()
        self._loss = torch.compile(self._imitate) if compiled else self._imitate

    def _imitate(self, rows: Tensor, head: Tensor, rows_t: Tensor, head_t: Tensor) -> tuple[Tensor, Tensor]:
        recipe = self.teacher.recipe
        return divergence(rows_t @ head_t.T, rows @ head.T, recipe.temperature, recipe.kl)

    def __call__(self, model: LlamaForCausalLM, step: int) -> Tensor:
        tokens = self.teacher.batch(step).to(model.device)
        with torch.autocast(model.device.type, torch.bfloat16, self.bf16):
            with torch.no_grad():
                rows = _rows(self.reader, tokens)
            loss, variation = self._loss(_rows(model, tokens), model.lm_head.weight, rows, self.reader.lm_head.weight)
        self.report = {"loss": float(loss.detach()), "acceptance": 1 - float(variation)}
        return loss
