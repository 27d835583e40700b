"""A model as its class builds it from `config.json`, without weights: parameters lie on the meta device.
Modules stand in for the parts that a layer range does not hold."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks

from paceline.stages.lm.folder import ModelFolder, ModelFolderError, first_line

__all__ = ["ALONE", "NoPositions", "PassedOn", "put", "skeleton"]

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


class PassedOn(nn.Module):
    """Stands in for a layer: gives its input back, in the form that the layer gives its result; with `bend` not quite,
    and in a way that depends on how large it is."""

    def __init__(self, as_tuple: bool, bend: float = 0.0) -> None:
        super().__init__()
        self._as_tuple, self._bend = as_tuple, bend

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor]:
        given = hidden + self._bend * hidden.sin() if self._bend else hidden
        return (given,) if self._as_tuple else given


class NoPositions(nn.Module):
    """Stands in for an embedding of positions: adds nothing."""

    def __init__(self, hidden: int, dtype: torch.dtype) -> None:
        super().__init__()
        self._hidden, self._dtype = hidden, dtype

    def forward(self, positions: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return torch.zeros(*positions.shape, self._hidden, dtype=self._dtype, device=positions.device)


def put(model: Any, name: str, module: nn.Module) -> None:
    """Replace the part of a model that has a dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
