"""Folders of language models as Transformers reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

__all__ = ["frozen", "write_model"]

ModelT = TypeVar("ModelT", bound=nn.Module)


def write_model(
    folder: Path,
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write `config.json`, `generation_config.json`, and last and atomically `model.safetensors`, rounded to bfloat16
    to halve the file. `weights` is a state dict whose head is its embedding; `metadata` goes into the head of the
    safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n", encoding="utf-8")
    tensors = {
        name: value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in weights.items()
        if name != "lm_head.weight"  # is the embedding
    }
    fresh = folder / "model.safetensors.fresh"
    save_file(tensors, str(fresh), metadata={"format": "pt", **metadata})
    fresh.chmod(0o644)  # safetensors writes files for their owner only
    os.replace(fresh, folder / "model.safetensors")


def frozen(model: ModelT) -> ModelT:
    """The model, ready to run and without gradients."""
    nn.Module.eval(model)
    nn.Module.requires_grad_(model, False)
    return model
