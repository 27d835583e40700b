"""Loads a run of layers of a model from its folder. Only the weights that the run computes with are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from transformers.utils import logging as transformers_logging

from paceline.stages.lm.anatomy import Anatomy
from paceline.stages.lm.attention import IMPLEMENTATION
from paceline.stages.lm.folder import ModelFolder, ModelFolderError
from paceline.stages.lm.layer_run import LayerRun
from paceline.stages.lm.self_check import self_check
from paceline.stages.lm.weights import WeightFiles, check_finite

__all__ = ["load_run"]

# Transformers types little of this, and what it types differs between its versions.
_AUTO: Any = transformers.AutoModelForCausalLM
_LOGGING: Any = transformers_logging
_HOOKS: Any = module_hooks


def load_run(
    folder: Path, device: torch.device, dtype: torch.dtype | None = None, layers: tuple[int, int] | None = None
) -> tuple[LayerRun, Any]:
    """A run of layers `[first, last)`, or of all, checked against the model's own forward, and the configuration.

    `dtype` None means float32 on a CPU, elsewhere what the model was saved in. Raises `ModelFolderError`.
    """
    found = ModelFolder.read(folder)
    first, last = layers or (0, found.layers)
    if not 0 <= first < last <= found.layers:
        raise ModelFolderError(
            f"{folder}: has layers 0 to {found.layers - 1}; a run [{first}, {last}) is not among them"
        )
    if dtype is None:
        dtype = found.dtype_on(device.type)
    model = _skeleton(found, dtype)
    anatomy = Anatomy.of(model)
    run = range(first, last)
    files = WeightFiles(folder, model.base_model_prefix, _tied(model))
    if all(files.holds(part.module, part.name) for part in anatomy.needed(run)):
        for part in anatomy.needed(run):
            files.fill(part.module, part.name, device, dtype)
        _share(anatomy, run, _tied(model))
    else:
        model = _converted(found, dtype)
        anatomy = Anatomy.of(model)
        for part in anatomy.needed(run):
            part.module.to(device)
            check_finite(folder, part.name, part.module)
    model.config._attn_implementation = IMPLEMENTATION
    layer_run = LayerRun(anatomy, model.config, run, device, dtype)
    self_check(model, anatomy, layer_run)
    return layer_run, model.config


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters take no memory; buffers, which many models compute at construction, are real."""

    def hook(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if parameter is None or parameter.device.type == "meta":
            return None
        return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)

    handle = _HOOKS.register_module_parameter_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _skeleton(found: ModelFolder, dtype: torch.dtype) -> Any:
    try:
        # Initialisation may draw; nobody else's generator is to move.
        with torch.random.fork_rng(devices=[]), _parameters_on_meta():
            model = _AUTO.from_config(found.config, dtype=dtype, attn_implementation="eager", trust_remote_code=False)
    except Exception as error:  # whatever the model's own code raises on a configuration that it does not like
        raise ModelFolderError(f"{found.path}/config.json: the model can't be built from it: {error}") from error
    return model.eval()


def _converted(found: ModelFolder, dtype: torch.dtype) -> Any:
    """The whole model by Transformers' own loader, which knows how the weights of some models (experts above all) are
    stored under other names; what the run does not need is dropped afterwards."""
    bars = _LOGGING.is_progress_bar_enabled()
    _LOGGING.disable_progress_bar()
    try:
        model, report = _AUTO.from_pretrained(
            str(found.path),
            dtype=dtype,
            attn_implementation="eager",
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # whatever Transformers raises for files that it can't use
        raise ModelFolderError(f"{found.path}: Transformers can't load it: {error}") from error
    finally:
        if bars:
            _LOGGING.enable_progress_bar()
    missing = sorted(report["missing_keys"])
    if missing:
        # Transformers would run it with random numbers in their place.
        raise ModelFolderError(
            f"{found.path}: holds no weight `{missing[0]}` ({len(missing)} are missing); download the model again"
        )
    return model.eval().requires_grad_(False)


def _tied(model: Any) -> dict[str, str]:
    tied = getattr(model, "_tied_weights_keys", None)
    return dict(tied) if isinstance(tied, dict) and model.config.tie_word_embeddings else {}


def _share(anatomy: Anatomy, run: range, tied: dict[str, str]) -> None:
    """A head that is tied to an embedding on the same rank is held once."""
    both = run.start == 0 and run.stop == len(anatomy.layers)
    if both and tied.get(f"{anatomy.head.name}.weight") == f"{anatomy.embedding.name}.weight":
        weight: Tensor = anatomy.embedding.module.weight
        anatomy.head.module.weight = weight
