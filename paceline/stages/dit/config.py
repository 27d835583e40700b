"""The shape of the embedded world model and its conditions, without torch: plans and checks need no more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
from safetensors import SafetensorError, safe_open

from paceline.pipeline.view import View
from paceline.stages.world_file import MemoryShape, WeightsError, WorldHeader

__all__ = ["CELLS", "LAGS", "DiTConfig", "FrameCondition", "GroundMemoryConfig"]

LAGS = 256
"""Distances in frames that the time axis can tell apart."""
CELLS = 4
"""Cells of a token for the memory, 2 x 2, each in a head of its own."""
_LARGEST = 1 << 24
"""Of any number in a configuration: sizes multiply, and a plan is made before a tensor is read."""
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class FrameCondition:
    """What is known of a frame before it is computed: the action that leads to it, the heading after it, and the
    pose of the view's upper left corner in half tokens."""

    action: int
    heading: int
    pose_y: int
    pose_x: int


@dataclass(frozen=True, slots=True)
class GroundMemoryConfig:
    """Sizes of the memory's state: `keys` and `values` of each of its heads."""

    keys: int = 512
    values: int = 13

    def shape(self, tokens: int) -> MemoryShape:
        """As every world model states it: a head for each cell of a token."""
        return MemoryShape(CELLS, tokens, self.keys, self.values, read=(tokens, CELLS * self.values))


@dataclass(frozen=True, slots=True)
class DiTConfig:
    """Shape of a model. `torus` and poses count half tokens; `token_dim` is the size of one token of a frame."""

    grid_y: int = 8
    grid_x: int = 8
    token_dim: int = 48
    width: int = 128
    layers: int = 4
    heads: int = 4
    actions: int = 5
    headings: int = 4
    torus: int = 48
    max_distance: int = 12
    time_frequencies: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125)
    space_frequencies: tuple[int, ...] = (1, 2, 4, 8, 12, 24)
    noise: Literal["frame", "ground"] = "frame"
    """What a frame starts from: noise of its own, or noise that lies on the ground and moves with the view."""
    memory: GroundMemoryConfig | None = None
    """Of the context memory that the network was trained to read (`ground_memory.py`); None: it reads none."""

    @property
    def tokens(self) -> int:
        """Tokens of one frame (N)."""
        return self.grid_y * self.grid_x

    @property
    def head_dim(self) -> int:
        """Size of one head (D)."""
        return self.width // self.heads

    def kv_bytes(self, bytes_per_value: int = 4) -> int:
        """Bytes of the keys and values of one frame over all layers."""
        return 2 * self.layers * self.tokens * self.width * bytes_per_value

    @property
    def view(self) -> View:
        """What a frame shows: tokens are two half tokens high and wide, poses count half tokens."""
        return View(self.torus, 2 * self.grid_y, 2 * self.grid_x)

    @property
    def header(self) -> WorldHeader:
        """Its shape as every world model states it. A token is a square patch of pixels, three values each."""
        patch = math.isqrt(self.token_dim // 3)
        return WorldHeader(
            self.layers,
            self.heads,
            self.head_dim,
            self.tokens,
            latent=(self.tokens, self.token_dim),
            picture=(self.grid_y * patch, self.grid_x * patch),
            columns=self.grid_x,
            view=self.view,
            memory=None if self.memory is None else self.memory.shape(self.tokens),
        )

    @classmethod
    def read(cls, path: Path) -> DiTConfig:
        """The configuration in the header of a weights file, checked against the tensors that the header lists; no
        tensor is read.

        Raises `FileNotFoundError`, or `WeightsError` where the file holds no world model, is cut off, or holds another
        model's tensors, with what to do.
        """
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}; give a .safetensors file or zoo:world")
        try:
            with safe_open(path, framework="np") as file:
                metadata = file.metadata() or {}
                config = msgspec.json.decode(metadata.get("dit_config", ""), type=cls)
                config.check()
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
                found = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
            config._check_tensors(found)
        except (OSError, ValueError, OverflowError, RecursionError, SafetensorError, msgspec.MsgspecError) as error:
            raise WeightsError(
                f"{path} holds no world model ({error}); give weights that zoo.world.train wrote"
            ) from error
        return config

    def check(self) -> None:
        """Raise `ValueError` where the numbers do not fit together."""
        for name in ("grid_y", "grid_x", "token_dim", "width", "layers", "heads", "actions", "headings", "torus"):
            if not 1 <= getattr(self, name) <= _LARGEST:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 to {_LARGEST}")
        if not 0 <= self.max_distance < LAGS:
            raise ValueError(f"max_distance is {self.max_distance}; it must be 0 to {LAGS - 1}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.width % 2:
            raise ValueError(f"width {self.width} is odd; times are embedded as pairs")
        if self.noise == "ground" and self.token_dim != 48:
            raise ValueError(f"noise on the ground needs tokens of 4 x 4 pixels, 48 values, not {self.token_dim}")
        if self.memory is not None:
            self._check_memory(self.memory)
        if not all(math.isfinite(value) for value in self.time_frequencies):
            raise ValueError("time_frequencies must be finite")
        if not all(abs(value) <= _LARGEST for value in self.space_frequencies):
            raise ValueError(f"space_frequencies must lie within {_LARGEST}")
        pairs = len(self.time_frequencies) + 2 * len(self.space_frequencies)
        if 2 * pairs != self.head_dim:
            raise ValueError(
                f"{len(self.time_frequencies)} time and 2 x {len(self.space_frequencies)} space frequencies "
                f"rotate {2 * pairs} of {self.head_dim} values of a head; they must rotate all of them"
            )

    def _check_memory(self, memory: GroundMemoryConfig) -> None:
        if self.token_dim != 48 or self.torus % 2:
            raise ValueError("a memory of the ground needs tokens of 4 x 4 pixels and an even torus")
        side = self.torus // 2
        most = (2 * ((side - 1) // 2) + 1) ** 2 - 1
        if not 2 <= memory.keys <= most or memory.keys % 2:
            raise ValueError(
                f"memory.keys is {memory.keys}; it must be even and 2 to {most} on a torus of {self.torus}"
            )
        if not 2 <= memory.values <= 256:
            raise ValueError(f"memory.values is {memory.values}; it must be 2 to 256")

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all weights."""
        c = self.width
        shapes: dict[str, tuple[int, ...]] = {
            "place": (self.tokens, c), "action.weight": (self.actions, c), "heading.weight": (self.headings, c)
        }  # fmt: skip
        linear = {
            "embed": (c, self.token_dim), "time.0": (c, 2 * c), "time.2": (c, c),
            "modulation": ((6 * self.layers + 2) * c, c), "head": (self.token_dim, c),
        }  # fmt: skip
        for layer in range(self.layers):
            inside = {"qkv": (3 * c, c), "out": (c, c), "up": (4 * c, c), "down": (c, 4 * c)}
            linear |= {f"blocks.{layer}.{name}": shape for name, shape in inside.items()}
        if self.memory is not None:
            cell, v = self.token_dim // CELLS, self.memory.values
            linear |= {
                "memory.value.0": (64, cell), "memory.value.2": (v - 1, 64), "memory.gate.0": (32, cell),
                "memory.gate.2": (1, 32), "memory.read.0": (256, CELLS * v), "memory.read.2": (c, 256),
            }  # fmt: skip
        for name, shape in linear.items():
            shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        return shapes

    def _check_tensors(self, found: dict[str, tuple[tuple[int, ...], str]]) -> None:
        """Raise `ValueError` where a file holds other tensors than the configuration makes."""
        # Before the names are made: a damaged number of layers may be huge.
        if self.layers > len(found):
            raise ValueError(f"dit_config has {self.layers} layers, and the file {len(found)} tensors")
        expected = self.tensors()
        for name in [*(expected.keys() - found.keys()), *(found.keys() - expected.keys())]:
            raise ValueError(f"{name!r} is {'missing' if name in expected else 'none of its weights'}")
        for name, (shape, dtype) in found.items():
            if shape != expected[name]:
                raise ValueError(f"{name!r} has shape {list(shape)}, but dit_config makes it {list(expected[name])}")
            if dtype not in _FLOATS:
                raise ValueError(f"{name!r} is of type {dtype}, not one of {', '.join(_FLOATS)}")
