"""One pair of models for all tests of the language runtime, and each model read once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from paceline.stages.lm import decoder
from paceline.stages.lm.blueprint import Blueprint
from tests.launch.language.pair import save_pair
from tests.runtime.language.cluster import state_of


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of target and drafter."""
    torch.set_num_threads(1)
    return save_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def read_once() -> Iterator[None]:
    """Read a folder, and load a run of its layers, once for the tests of a module that find the same files in it.
    Reading one takes longer than most generations here.

    Runs are not shared between ranks, which are threads with names of their own: a run takes one pass at a time.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Blueprint, "read", _once(Blueprint.read))
        patch.setattr(decoder, "load_run", _once(decoder.load_run))
        yield


def _once(read: Callable[..., Any]) -> Callable[..., Any]:
    found: dict[object, Any] = {}

    def cached(folder: Path, *args: Any, **kwargs: Any) -> Any:
        key = threading.current_thread().name, state_of(folder), args, tuple(sorted(kwargs.items()))
        if key not in found:
            found[key] = read(folder, *args, **kwargs)
        return found[key]

    return cached
