"""What several tests of launches share."""

from __future__ import annotations

import shutil

import pytest

from tests.harness import ROOT


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The `--set` that names a copy of the weights, so that a trainer that replaces them meanwhile changes nothing."""
    copy = tmp_path_factory.mktemp("model") / "model.safetensors"
    shutil.copyfile(ROOT / "zoo" / "world" / "weights.safetensors", copy)
    return f"model.weights={copy}"
