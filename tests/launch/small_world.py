"""A world model of two layers with random weights, for runs over memory tiers."""

from __future__ import annotations

from pathlib import Path

import torch

from paceline.stages.dit.config import DiTConfig
from paceline.stages.dit.network import save_dit
from tests.stages.conftest import random_model

CONFIG = DiTConfig(width=64, layers=2, heads=2)
FRAME = CONFIG.kv_bytes()


def save_small(folder: Path) -> Path:
    """Its weights, in a file in a folder."""
    torch.set_num_threads(1)
    path = folder / "random.safetensors"
    save_dit(random_model(CONFIG), path)
    return path
