"""A small random world model: equality needs no training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from paceline.stages.dit.config import DiTConfig
from paceline.stages.dit.model import DiTModel
from paceline.stages.dit.network import DiT, save_dit


def random_model(config: DiTConfig, seed: int = 0) -> DiT:
    """Weights large enough that every input matters."""
    generator = torch.Generator().manual_seed(seed)
    model = DiT(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.08)
    return model


@pytest.fixture(scope="session")
def model() -> DiTModel:
    """Three layers of width 64, on the embedded world's grid."""
    torch.set_num_threads(1)
    return DiTModel(random_model(DiTConfig(width=64, layers=3, heads=2)))


@pytest.fixture(scope="session")
def weights(model: DiTModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a file."""
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_dit(model.network, path)
    return path
