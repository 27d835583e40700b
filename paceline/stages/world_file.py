"""World models on disk: what plans and checks need of one, without torch, and which registered kind reads a file."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from paceline.pipeline.unit import ModelShape
from paceline.pipeline.view import View
from paceline.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from paceline.stages.feed import Feed
    from paceline.stages.world_model import FrameDecoder, WorldModel

__all__ = [
    "WORLD_MODELS",
    "MemoryShape",
    "WeightsError",
    "WorldFile",
    "WorldHeader",
    "find_weights",
    "open_world",
    "safetensors_metadata",
    "step_times",
    "world_of",
]


WORLD_MODELS = Registry("world model", "paceline.world_models", {"dit": "paceline.stages.dit.file:DiTFile"})
"""Classes that implement `WorldFile`. The content of a file decides which of them reads it."""

_ZOO = "zoo:"
_LARGEST_HEADER = 100_000_000
"""Bytes of the header of a safetensors file, as the format limits it."""
_ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}


class WeightsError(ValueError):
    """A file or folder holds no world model, or one that can't run. The message says what to do."""


@dataclass(frozen=True, slots=True)
class MemoryShape:
    """Sizes of the context memory that a model was trained to read. Each head has keys and values of its own."""

    heads: int
    tokens: int
    """Written of a frame"""
    keys: int
    values: int
    read: tuple[int, ...]
    """Shape of what a frame reads, float32; it travels with the latent"""


@dataclass(frozen=True, slots=True)
class WorldHeader:
    """The shape of a world model. A *frame* is what one position of a session stands for: a block of one or several
    latent frames that are denoised together. Windows and sinks of a topology count frames."""

    layers: int
    heads: int
    """KV heads"""
    head_dim: int
    tokens: int
    """Tokens of a frame (N), over all its latent frames"""
    latent: tuple[int, ...]
    """Shape of the latent of a frame"""
    picture: tuple[int, int]
    """Height and width in pixels of what the decoder returns"""
    latent_frames: int = 1
    """Latent frames in a frame"""
    pictures: int = 1
    """Most pictures that the decoder returns for one frame"""
    columns: int = 1
    """Tokens in a row of the picture"""
    latent_dtype: str = "float32"
    """`float32`, `bfloat16` or `float16`"""
    kv_dtype: str = "float32"
    schedules: tuple[tuple[float, ...], ...] = ()
    """The step times `(t_0, ..., t_S)` for each number of steps that the model takes; empty where it takes any number,
    evenly spaced"""
    view: View | None = None
    """What a frame shows, where frames can be recalled by pose"""
    memory: MemoryShape | None = None
    """Of the context memory that the model was trained with; None where it reads none"""

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "head_dim", "tokens", "latent_frames", "pictures", "columns"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.tokens % self.latent_frames:
            raise ValueError(f"{self.tokens} tokens can't be shared out among {self.latent_frames} latent frames")
        for name in ("latent_dtype", "kv_dtype"):
            if getattr(self, name) not in _ITEMSIZE:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(_ITEMSIZE)}")
        for times in self.schedules:
            if len(times) < 2 or any(later >= earlier for earlier, later in pairwise(times)):
                raise ValueError(f"step times {list(times)} do not fall from noise to the finished frame")

    def step_times(self, steps: int) -> tuple[float, ...]:
        """Times `(t_0, ..., t_S)` of S steps. Raises `ValueError` for a number that the model does not take."""
        if not self.schedules:
            return step_times(steps)
        for times in self.schedules:
            if len(times) == steps + 1:
                return times
        takes = " or ".join(str(len(times) - 1) for times in self.schedules)
        raise ValueError(f"the model takes {takes} steps, not {steps}")

    @property
    def kv_layer_bytes(self) -> int:
        """Bytes of the keys and values of one layer of a frame."""
        return 2 * self.tokens * self.heads * self.head_dim * _ITEMSIZE[self.kv_dtype]

    @property
    def shape(self) -> ModelShape:
        """Sizes for plans and credits."""
        latent = prod(self.latent) * _ITEMSIZE[self.latent_dtype]
        height, width = self.picture
        pictures = self.pictures * height * width * 3
        read = 0 if self.memory is None else 4 * prod(self.memory.read)
        return ModelShape(self.layers, latent, self.kv_layer_bytes, pictures, self.view, read)


class WorldFile(Protocol):
    """A world model in a file or folder. What the commands `plan` and `validate` call imports no torch.

    A class that derives from this one inherits `check`.
    """

    path: Path

    def __init__(self, path: Path) -> None: ...

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether this class reads a file or folder, from its content. Raises nothing for one that it does not read."""
        ...

    def header(self) -> WorldHeader:
        """The shape of the model; no tensor is read. Raises `WeightsError` where the model can't run."""
        ...

    def check(self) -> None:
        """Look at the weights before a run starts. Raises `WeightsError` where one is NaN or infinite."""

    def load(self, device: str) -> WorldModel[Any, Any]:
        """The model on a device. Raises `WeightsError`."""
        ...

    def decoder(self, device: str) -> FrameDecoder:
        """What turns its latents into pictures. Raises `WeightsError`."""
        ...

    def feed(self, seed: int, prompt: int, on_truth: Callable[[np.ndarray], None] | None = None) -> Feed:
        """The inputs of a session: `prompt` latents, each with its condition as metadata, then conditions alone.

        `on_truth` is handed the true picture behind every condition, where it is known.
        """
        ...


def world_of(name: str) -> WorldFile:
    """The world model behind `model.weights`. Raises what `find_weights` and `open_world` raise."""
    return open_world(find_weights(name))


def open_world(path: Path) -> WorldFile:
    """The world model in a file or folder, by the first registered class that recognises it.

    Raises `FileNotFoundError` where there is nothing, and `WeightsError` where no class recognises it.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}; give a .safetensors file or zoo:world")
    # The built-in ones come first, so that other packages are imported only where they are needed.
    for name in WORLD_MODELS:
        try:
            kind: type[WorldFile] = WORLD_MODELS.load(name)
        except ValueError as error:
            raise WeightsError(str(error)) from error
        if kind.recognises(path):
            return kind(path)
    known = ", ".join(WORLD_MODELS.names())
    other = f"install the package that reads it (an entry point of {WORLD_MODELS.group})"
    if path.is_dir():
        raise FileNotFoundError(f"there is no file {path}, and as a folder none of {known} recognises it; {other}")
    raise WeightsError(f"{path} holds no world model that one of {known} recognises; give zoo:world, or {other}")


class _Header(msgspec.Struct):
    metadata: dict[str, str] = msgspec.field(name="__metadata__", default_factory=dict)


def safetensors_metadata(path: Path) -> dict[str, str]:
    """The metadata in the header of a safetensors file; empty where the file is none. Cheap: no tensor is looked at."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > min(_LARGEST_HEADER, path.stat().st_size):
                return {}
            return msgspec.json.decode(file.read(size), type=_Header).metadata
    except (OSError, ValueError, RecursionError, msgspec.MsgspecError):
        return {}


def find_weights(name: str) -> Path:
    """The file or folder behind `zoo:NAME` or a path. Raises `FileNotFoundError` for a name that is not in the zoo."""
    if not name.startswith(_ZOO):
        return Path(os.path.expanduser(name))
    spec = importlib.util.find_spec("zoo")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    known = {file.parent.name: file for folder in folders for file in Path(folder).glob("*/weights.safetensors")}
    if name.removeprefix(_ZOO) not in known:
        names = ", ".join(_ZOO + name for name in sorted(known)) or "none"
        raise FileNotFoundError(f"there is no embedded model {name}; known: {names}")
    return known[name.removeprefix(_ZOO)]


def step_times(steps: int) -> tuple[float, ...]:
    """Times `(t_0, ..., t_S)` of S steps: step s takes a frame from t_s to t_{s+1}; t_0 = 1 is noise, t_S = 0 is clean.

    Evenly spaced. Level s of a frame is its state at t_s, so level S is the finished frame. Raises `ValueError` for
    fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"a frame needs at least 1 step, not {steps}")
    return (*(1.0 - s / steps for s in range(steps)), 0.0)
