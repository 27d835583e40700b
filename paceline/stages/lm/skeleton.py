"""A model as its class builds it from `config.json`, without weights: parameters lie on the meta device."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn.modules import module as module_hooks

from paceline.stages.lm.folder import ModelFolder, ModelFolderError, first_line

__all__ = ["ALONE", "skeleton"]

# Transformers types little of this, and what it types differs between its versions.
_AUTO: Any = transformers.AutoModelForCausalLM
_HOOKS: Any = module_hooks
ALONE = threading.Lock()
"""While a model is built the hook below and torch's default dtype are those of the whole process."""


def skeleton(found: ModelFolder, dtype: torch.dtype, hollow: bool = False) -> Any:
    """The model in evaluation mode, with eager attention. Buffers that are computed at construction are real; of a
    hollow one they are not, and building it never takes memory, even for a moment. Raises `ModelFolderError`."""
    place = torch.device("meta") if hollow else _parameters_on_meta()
    try:
        # Initialisation may draw; nobody else's generator is to move.
        with ALONE, torch.random.fork_rng(devices=[]), place:
            model = _AUTO.from_config(found.config, dtype=dtype, attn_implementation="eager", trust_remote_code=False)
    except Exception as error:  # whatever the model's own code raises on a configuration that it does not like
        raise ModelFolderError(
            f"{found.path}/config.json: the model can't be built from it: {first_line(error)}; download it again, or "
            "give another model"
        ) from error
    return model.eval().requires_grad_(False)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters take no memory; buffers, which many models compute at construction, are real."""

    thread = threading.get_ident()

    def hook(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        # The hook is called for the modules of all threads.
        if parameter is None or parameter.device.type == "meta" or threading.get_ident() != thread:
            return None
        return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)

    handle = _HOOKS.register_module_parameter_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()
