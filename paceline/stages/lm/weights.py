"""The weights of a folder by name: one safetensors file, or several with an index. Only what is asked for is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from paceline.stages.finite import is_finite
from paceline.stages.lm.folder import ModelFolderError

__all__ = ["WeightFiles", "check_finite"]

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


class WeightFiles:
    """Finds tensors of a checkpoint under the names that a Transformers model gives them.

    `prefix` is the model's `base_model_prefix`: a checkpoint of the bare base model lacks it. `tied` maps the names of
    tied parameters to those under which they may be stored instead.
    """

    def __init__(self, folder: Path, prefix: str, tied: Mapping[str, str]) -> None:
        self.folder = folder
        self._prefix = f"{prefix}."
        self._tied = dict(tied) | {stored: name for name, stored in tied.items()}
        self._file_of = _file_of(folder)

    def holds(self, module: nn.Module, prefix: str) -> bool:
        """Whether all of a module named `prefix` in its model is stored, under these names."""
        return all(self._stored(f"{prefix}.{name}") is not None for name in module.state_dict())

    def fill(self, module: nn.Module, prefix: str, device: torch.device, dtype: torch.dtype) -> None:
        """Give a module on the meta device, named `prefix` in its model, its parameters and stored buffers.

        Raises `ModelFolderError` where one is missing, is unreadable, has another shape, or is NaN or infinite.
        """
        state = {}
        for name, expected in module.state_dict().items():
            tensor = self._read(f"{prefix}.{name}")
            if tensor.shape != expected.shape:
                raise ModelFolderError(
                    f"{self.folder}: `{prefix}.{name}` has shape {list(tensor.shape)}, but config.json makes it "
                    f"{list(expected.shape)}; the two files are not of the same model"
                )
            state[name] = tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
        module.load_state_dict(state, assign=True)
        check_finite(self.folder, prefix, module)
        module.to(device)  # what is not stored, e.g. tables made at construction
        module.requires_grad_(False)

    def _stored(self, name: str) -> str | None:
        for known in (name, self._tied.get(name)):
            if known is None:
                continue
            for stored in (known, known.removeprefix(self._prefix)):
                if stored in self._file_of:
                    return stored
        return None

    def _read(self, name: str) -> Tensor:
        stored = self._stored(name)
        if stored is None:
            raise ModelFolderError(f"{self.folder}: holds no weight `{name}`; download the model again")
        path = self._file_of[stored]
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(stored)
        except (OSError, SafetensorError) as error:
            raise ModelFolderError(f"{path}: can't be read ({error}); download it again") from error
        return tensor


def check_finite(folder: Path, prefix: str, module: nn.Module) -> None:
    """Raise `ModelFolderError` where a parameter of a module, named `prefix` in its model, is NaN or infinite."""
    for name, weight in module.named_parameters():
        if not is_finite(weight):
            raise ModelFolderError(
                f"{folder}: the weight `{prefix}.{name}` holds NaN or infinity as {weight.dtype}; download the model "
                "again, or take one whose training did not diverge"
            )


def _file_of(folder: Path) -> dict[str, Path]:
    """The file of each stored tensor. Several files without an index are read as one checkpoint."""
    index = folder / _INDEX
    if index.is_file() and not (folder / _SINGLE).is_file():
        try:
            found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            file_of = {str(name): folder / str(file) for name, file in found.items()}
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ModelFolderError(f"{index}: is no index of weights ({error!r}); download it again") from error
        missing = sorted({path.name for path in file_of.values() if not path.is_file()})
        if missing:
            raise ModelFolderError(f"{folder}: {', '.join(missing)} named in {_INDEX} is missing; download it too")
        return file_of
    single = folder / _SINGLE
    paths = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    file_of = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                file_of |= dict.fromkeys(file.keys(), path)
        except (OSError, SafetensorError) as error:
            raise ModelFolderError(f"{path}: can't be read ({error}); download it again") from error
    return file_of
