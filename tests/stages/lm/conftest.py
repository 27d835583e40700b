"""The three model types that everything is checked on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from .models import save_random


@dataclass(frozen=True, slots=True)
class Saved:
    """A model as Transformers made it, and where it is saved."""

    folder: Path
    model: Any


@pytest.fixture(scope="session", params=["llama", "qwen3", "gpt2"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Llama and Qwen3 with grouped heads; GPT-2 with tied weights and a table of positions."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param)
    return Saved(folder, save_random(request.param, folder))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """One model where one is enough."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("one")
    return Saved(folder, save_random("llama", folder))
