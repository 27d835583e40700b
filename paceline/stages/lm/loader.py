"""Loads a run of layers of a model from its folder. Only the weights that the run computes with are kept."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from paceline.stages.lm.anatomy import Anatomy
from paceline.stages.lm.attention import IMPLEMENTATION
from paceline.stages.lm.blueprint import Blueprint
from paceline.stages.lm.folder import ModelFolder, ModelFolderError, first_line
from paceline.stages.lm.layer_run import LayerRun
from paceline.stages.lm.skeleton import ALONE, NoPositions, PassedOn, put, skeleton
from paceline.stages.lm.weights import WeightFiles, quiet

__all__ = ["LoadedRun", "load_run"]

_AUTO: Any = transformers.AutoModelForCausalLM
_READ_TWICE = 256 << 20
"""Bytes of a checkpoint up to which the reference of the self-check is loaded by itself, by Transformers."""


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A run of layers, what is known of the model, and what the run is to be checked against."""

    run: LayerRun
    plan: Blueprint
    reference: Any
    """The model in Transformers' own form, with stand-ins for what the run does not hold."""


def load_run(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype | None = None,
    layers: tuple[int, int] | None = None,
) -> LoadedRun:
    """A run of layers `[first, last)`, or of all; it is not checked yet.

    `dtype` None means float32 on a CPU, elsewhere what the model was saved in. Raises `ModelFolderError`.
    """
    found = ModelFolder.read(folder)
    if dtype is None:
        dtype = found.dtype_on(device.type)
    model = skeleton(found, dtype)
    anatomy = Anatomy.of(model)
    plan = Blueprint.of(found, model, anatomy)
    first, last = layers or (0, plan.layers)
    if not 0 <= first < last <= plan.layers:
        raise ModelFolderError(
            f"{folder}: has layers 0 to {plan.layers - 1}; a run [{first}, {last}) is not among them"
        )
    run = range(first, last)
    files = WeightFiles(folder)
    _take_out(model, anatomy, plan, run, ends=_tied_ends(model, anatomy, run))
    files.fill(model, device)
    _take_out(model, anatomy, plan, run)
    for part in anatomy.needed(run):
        part.module.to(device)
    model.config._attn_implementation = IMPLEMENTATION
    layer_run = LayerRun(anatomy, plan.traits, plan.max_positions, run, device, dtype, model.config)
    return LoadedRun(layer_run, plan, _reference(found, plan, model, run, device, files.nbytes))


def _tied_ends(model: Any, anatomy: Anatomy, run: range) -> set[str]:
    """Embedding and head where they are a tied pair of which the run needs one: it takes both to see whether they are
    tied in the files, too."""
    tied = {frozenset(name.rpartition(".")[0] for name in pair) for pair in model.all_tied_weights_keys.items()}
    ends = {anatomy.embedding.name, anatomy.head.name}
    needed = {part.name for part in anatomy.needed(run)}
    return ends if frozenset(ends) in tied and ends & needed else set()


def _take_out(model: Any, anatomy: Anatomy, plan: Blueprint, run: range, ends: Collection[str] = ()) -> None:
    """Put stand-ins in the place of what the run does not need, but for `ends`."""
    kept = {part.name for part in anatomy.needed(run)} | set(ends)
    for index, part in enumerate(anatomy.layers):
        if index not in run:
            put(model, part.name, PassedOn(plan.traits[index].as_tuple))
    for end in (anatomy.embedding, anatomy.norm, anatomy.head):
        if end.name not in kept:
            put(model, end.name, nn.Identity())
    if anatomy.positions is not None and anatomy.positions.name not in kept:
        put(model, anatomy.positions.name, NoPositions(plan.hidden, model.dtype))


def _reference(found: ModelFolder, plan: Blueprint, model: Any, run: range, device: torch.device, nbytes: int) -> Any:
    """What Transformers loads from the same files, or the loaded parts in Transformers' own form where the files are
    so large that reading them twice would take long."""
    if nbytes > _READ_TWICE:
        return model
    reference = _loaded_by_transformers(found, model.dtype)
    _take_out(reference, Anatomy.of(reference), plan, run)
    return reference.to(device)


def _loaded_by_transformers(found: ModelFolder, dtype: torch.dtype) -> Any:
    try:
        with ALONE, torch.random.fork_rng(devices=[]), quiet():
            model = _AUTO.from_pretrained(
                str(found.path),
                dtype=dtype,
                attn_implementation="eager",
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
    except Exception as error:  # whatever Transformers raises for files that it can't use
        raise ModelFolderError(
            f"{found.path}: Transformers can't load it ({first_line(error)}); download it again"
        ) from error
    return model.eval().requires_grad_(False)
