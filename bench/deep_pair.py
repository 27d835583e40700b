"""A target that computes what another one does and takes longer: layers that add nothing, behind its own.

Their last projections are zero, so the residual stream passes through them as it was: the same logits, bit for bit, for
the time of a deeper network. So a drafter of measured acceptance meets the costs of a larger target.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

__all__ = ["deepen"]

_LAST = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


def deepen(folder: Path, out: Path, layers: int) -> Path:
    """Write a copy of a Llama folder that has `layers` layers in all. Raises `ValueError` where it has more already."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    own = int(config["num_hidden_layers"])
    if layers < own:
        raise ValueError(f"{folder} has {own} layers; {layers} are fewer")
    shutil.copytree(folder, out)
    weights = load_file(str(folder / "model.safetensors"))
    for layer in range(own, layers):
        # Weights of its own layers in turn, so that the new ones cost what layers cost.
        head = f"model.layers.{layer % own}."
        for name in [name for name in weights if name.startswith(head)]:
            rest = name.removeprefix(head)
            value = torch.zeros_like(weights[name]) if rest in _LAST else weights[name].clone()
            weights[f"model.layers.{layer}.{rest}"] = value
    config["num_hidden_layers"] = layers
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    save_file(weights, str(out / "model.safetensors"), metadata={"format": "pt"})
    return out
