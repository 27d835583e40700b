"""One pair of models for all tests of language launches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.launch.language.pair import save_pair


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of target and drafter."""
    torch.set_num_threads(1)
    return save_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def models(pair: tuple[Path, Path]) -> list[str]:
    """The pair as options of the command."""
    return ["--set", f"model.target={pair[0]}", "--set", f"model.draft={pair[1]}"]
