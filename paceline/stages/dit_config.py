"""The shape of a world model and where its weights are, without torch: plans and checks need no more."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from paceline.pipeline.recall import View
from paceline.pipeline.unit import ModelShape

__all__ = ["DiTConfig", "find_weights"]

_ZOO = "zoo:"
_LARGEST_HEADER = 100 * 2**20
"""Safetensors' own limit, in bytes."""


@dataclass(frozen=True, slots=True)
class DiTConfig:
    """Shape of a world model. `torus` and poses count half tokens; `token_dim` is the size of one token of a frame."""

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
    def shape(self) -> ModelShape:
        """Sizes for plans and credits. Latents are floats, a finished frame bytes."""
        values = self.tokens * self.token_dim
        return ModelShape(self.layers, 4 * values, self.kv_bytes() // self.layers, values, self.view)

    @classmethod
    def read(cls, path: Path) -> DiTConfig:
        """The configuration in the header of a weights file; no tensor is read.

        Raises `FileNotFoundError`, or `ValueError` where the file holds no world model, with what to do.
        """
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}; give a .safetensors file or zoo:world")
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if length > _LARGEST_HEADER:
                    raise ValueError(f"a header of {length} bytes")
                header = json.loads(file.read(length))
            config = msgspec.json.decode(header["__metadata__"]["dit_config"], type=cls)
            config.check()
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} holds no world model ({error}); give weights that zoo.world.train wrote"
            ) from error
        return config

    def check(self) -> None:
        """Raise `ValueError` where the numbers do not fit together."""
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.noise == "ground" and self.token_dim != 48:
            raise ValueError(f"noise on the ground needs tokens of 4 x 4 pixels, 48 values, not {self.token_dim}")
        pairs = len(self.time_frequencies) + 2 * len(self.space_frequencies)
        if 2 * pairs != self.head_dim:
            raise ValueError(
                f"{len(self.time_frequencies)} time and 2 x {len(self.space_frequencies)} space frequencies "
                f"rotate {2 * pairs} of {self.head_dim} values of a head; they must rotate all of them"
            )


def find_weights(name: str) -> Path:
    """The file behind `zoo:NAME` or a path. Raises `FileNotFoundError` for a name that is not in the zoo."""
    if not name.startswith(_ZOO):
        return Path(name)
    spec = importlib.util.find_spec("zoo")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    known = {file.parent.name: file for folder in folders for file in Path(folder).glob("*/weights.safetensors")}
    if name.removeprefix(_ZOO) not in known:
        names = ", ".join(_ZOO + name for name in sorted(known)) or "none"
        raise FileNotFoundError(f"there is no embedded model {name}; known: {names}")
    return known[name.removeprefix(_ZOO)]
