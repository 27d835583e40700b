"""The weights of a folder: one safetensors file, or several with an index, under whatever names they are stored.

Transformers' own loader says what belongs where: it knows the names under which checkpoints of a class were published,
which tensors are to be merged or split, and what is tied. It is given a model from which everything was taken that is
not needed here, and reads no more than the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import core_model_loading, modeling_utils
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.utils import logging as transformers_logging

from paceline.stages.finite import is_finite
from paceline.stages.lm.folder import ModelFolderError, first_line

__all__ = ["WeightFiles", "quiet"]

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_POINTER = b"version https://git-lfs"
# Transformers types little of this, and what it types differs between its versions.
_LOADING: Any = core_model_loading
_UTILS: Any = modeling_utils
_MAPPING: Any = get_model_conversion_mapping
_LOGGING: Any = transformers_logging


class WeightFiles:
    """The checkpoint of a folder. Raises `ModelFolderError` where a file is missing or can't be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._paths = _paths(folder)

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self._paths)

    def check(self, model: Any) -> None:
        """Check, by the files' headers, that everything in a skeleton is stored in its shape; the skeleton is used up.

        Raises `ModelFolderError`.
        """
        with self._opened() as stored:
            outlines = {
                name: torch.empty(tensor.get_shape(), dtype=_DTYPES.get(tensor.get_dtype(), torch.uint8), device="meta")
                for name, tensor in stored.items()
            }
        self._filled(model, outlines, torch.device("meta"))

    def fill(self, model: Any, device: torch.device) -> None:
        """Give a skeleton, or what is left of one, its parameters and stored buffers, tied as Transformers ties them.

        Raises `ModelFolderError` where one is missing, is unreadable, has another shape, or is NaN or infinite.
        """
        with self._opened() as stored:
            self._filled(model, stored, device)

    def _filled(self, model: Any, stored: Mapping[str, Any], device: torch.device) -> None:
        dtype = model.dtype
        settings = _UTILS.LoadStateDictConfig(
            dtype=dtype,
            dtype_plan=model._get_dtype_plan(dtype),
            device_map={"": device},
            weight_mapping=_MAPPING(model),
        )
        held = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        held |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
        tied = model.all_tied_weights_keys.items()
        model.all_tied_weights_keys = {one: other for one, other in tied if {one, other} <= held}
        try:
            with quiet():
                info, _ = _LOADING.convert_and_load_state_dict_in_model(model, stored, settings)
                wrong = sorted(info.mismatched_keys)
                if not wrong and not info.conversion_errors:
                    model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
                    model._adjust_missing_and_unexpected_keys(info)
        except Exception as error:  # whatever the reader or a conversion raises on tensors that it can't use
            raise ModelFolderError(
                f"{self.folder}: its weights can't be read ({first_line(error)}); download them again"
            ) from error
        if wrong:
            name, found, expected = wrong[0]
            raise ModelFolderError(
                f"{self.folder}: `{name}` has shape {list(found)}, but config.json makes it {list(expected)}; the two "
                "files are not of the same model"
            )
        if info.conversion_errors:
            name, why = next(iter(sorted(info.conversion_errors.items())))
            raise ModelFolderError(
                f"{self.folder}: `{name}` can't be made of what is stored ({str(why).strip().splitlines()[-1]}); the "
                "weights and config.json are not of the same model"
            )
        missing = sorted(info.missing_keys)
        if missing:
            # Transformers would run it with random numbers in their place.
            raise ModelFolderError(
                f"{self.folder}: holds no weight `{missing[0]}` ({len(missing)} are missing); download the model again"
            )
        model.requires_grad_(False)
        if device.type != "meta":
            _check_finite(self.folder, model)

    @contextmanager
    def _opened(self) -> Iterator[dict[str, Any]]:
        """Every stored tensor by its stored name, not read yet."""
        with ExitStack() as files:
            stored: dict[str, Any] = {}
            for path in self._paths:
                try:
                    file: Any = files.enter_context(safe_open(path, framework="pt"))
                    stored |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                except (OSError, SafetensorError) as error:
                    raise ModelFolderError(_unreadable(path, error)) from error
            yield stored


_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def _unreadable(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as file:
            pointer = file.read(len(_POINTER)) == _POINTER
    except OSError:
        pointer = False
    if pointer:
        return f"{path}: is a pointer of Git LFS and not the weights; run `git lfs pull` in its folder"
    return f"{path}: can't be read ({first_line(error)}); download it again"


def _check_finite(folder: Path, model: Any) -> None:
    for name, weight in model.named_parameters():
        if not is_finite(weight):
            raise ModelFolderError(
                f"{folder}: the weight `{name}` holds NaN or infinity as {weight.dtype}; download the model "
                "again, or take one whose training did not diverge"
            )


@contextmanager
def quiet() -> Iterator[None]:
    """Let Transformers show no progress."""
    bars = _LOGGING.is_progress_bar_enabled()
    _LOGGING.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            _LOGGING.enable_progress_bar()


def _paths(folder: Path) -> list[Path]:
    """The files of the checkpoint. Several files without an index are read as one."""
    index, single = folder / _INDEX, folder / _SINGLE
    if single.is_file():
        return [single]
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    try:
        names = sorted({str(file) for file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelFolderError(f"{index}: is no index of weights ({error!r}); download it again") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelFolderError(f"{folder}: {', '.join(missing)} named in {_INDEX} is missing; download it too")
    return [folder / name for name in names]
