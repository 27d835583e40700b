"""A model's local folder: its configuration, what it must hold, which tokens end a text. Nothing is ever downloaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["ModelFolder", "ModelFolderError", "first_line", "weights_identity"]

_WHOLE = 64 << 20
_PIECES, _PIECE = 256, 64 << 10

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class ModelFolderError(ValueError):
    """A folder holds no model, or none that can run here. The message says what to do."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder with a causal language model: `config` is Transformers' own object, to be copied and not changed."""

    path: Path
    config: Any
    eos_ids: frozenset[int]
    """Tokens that end a text, from `generation_config.json`, else from the configuration."""

    @classmethod
    def read(cls, path: Path) -> ModelFolder:
        """Read and check a folder; weights are not touched.

        Raises `ModelFolderError` where the folder or its config.json is missing or broken, where the weights are no
        safetensors, and where the model is no causal language model, is quantised, or needs code of its own.
        """
        if not path.is_dir():
            raise ModelFolderError(f"{path}: no such folder; download the model first and give its local folder")
        if not (path / "config.json").is_file():
            raise ModelFolderError(f"{path}: has no config.json; give the folder that `save_pretrained` wrote")
        raw = _json(path / "config.json")
        if not any(path.glob("*.safetensors")):
            raise ModelFolderError(_no_weights(path))
        if raw.get("quantization_config"):
            raise ModelFolderError(f"{path}: its weights are quantised; give the folder of the unquantised model")
        config = _config(path, raw)
        # Imported here, as in the functions below: torch and Transformers take seconds, and what is wrong with the
        # files should not wait for them.
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

        from paceline.stages.lm.memory import model  # noqa: F401 (registers its model type)

        if getattr(config, "is_encoder_decoder", False):
            raise ModelFolderError(
                f"{path}: `{config.model_type}` is an encoder-decoder; give a decoder-only language model"
            )
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ModelFolderError(
                f"{path}: Transformers has no causal language model for `{config.model_type}`; give one that it has"
            )
        return cls(path, config, _eos_ids(path, config))

    def dtype_on(self, device_type: str) -> torch.dtype:
        """What weights and KV are on a kind of device: float32 on a CPU, elsewhere what the model was saved in."""
        import torch

        saved = getattr(self.config, "dtype", None)
        return saved if device_type != "cpu" and isinstance(saved, torch.dtype) else torch.float32


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{path}: can't be read as JSON ({error}); download it again") from error
    if not isinstance(found, dict):
        raise ModelFolderError(f"{path}: is no JSON object; download it again")
    return found


def _config(path: Path, raw: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    from paceline.stages.lm.memory import config  # noqa: F401 (registers its model type)

    try:
        return AutoConfig.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a broken configuration makes Transformers raise
        if raw.get("auto_map"):
            raise ModelFolderError(
                f"{path}: the model needs code of its own (`auto_map` in config.json), which is never run; give a "
                "model that Transformers has built in"
            ) from error
        kind = raw.get("model_type")
        named = f"model_type `{kind}`" if kind else "no model_type"
        raise ModelFolderError(
            f"{path}/config.json: Transformers can't use it ({named}): {first_line(error)}; download it again, or "
            "give a model that this version of Transformers has built in"
        ) from error


def _no_weights(path: Path) -> str:
    pickled = sorted(found.name for pattern in _PICKLED for found in path.glob(pattern))
    if pickled:
        return (
            f"{path}: its weights are pickled ({pickled[0]}), and pickle runs code; convert them to safetensors, by "
            "`save_pretrained` of a machine that trusts the file"
        )
    return f"{path}: holds no *.safetensors; download the weights too"


def _eos_ids(path: Path, config: Any) -> frozenset[int]:
    generation = path / "generation_config.json"
    named = _json(generation).get("eos_token_id") if generation.is_file() else None
    if named is None:
        named = getattr(config, "eos_token_id", None)
    if named is None:
        return frozenset()
    return frozenset(named if isinstance(named, list) else [named])


def first_line(error: Exception) -> str:
    """What an error of somebody else says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def weights_identity(folder: Path) -> str:
    """A hash of a model's folder: its configuration and its weights, wherever it lies.

    Of files above 64 MiB the size, the first and last 64 KiB and 254 pieces between them are hashed: training moves all
    weights of a layer, and a hash of all bytes would take as long as loading them. Raises `OSError`.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            if size <= _WHOLE:
                digest.update(file.read())
                continue
            for index in range(_PIECES):
                file.seek((size - _PIECE) * index // (_PIECES - 1))
                digest.update(file.read(_PIECE))
    return digest.hexdigest()[:32]
