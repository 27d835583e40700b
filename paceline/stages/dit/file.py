"""The embedded world model in its file, which `save_dit` wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from paceline.stages.dit.config import DiTConfig
from paceline.stages.world_file import WeightsError, WorldFile, WorldHeader, safetensors_metadata

if TYPE_CHECKING:
    import numpy as np

    from paceline.stages.dit.feed import GlyphFeed
    from paceline.stages.dit.model import DiTModel
    from paceline.stages.dit.patches import PatchDecoder

__all__ = ["DiTFile", "not_finite"]

_WORLD = ("grid_y", "grid_x", "token_dim", "actions", "headings", "torus")
"""What a model has to share with the embedded world, whose shape is the default one."""
_MOST_BYTES = 256 * 2**20
"""Of files whose weights are all looked at before a run; of larger ones `load` looks at every tensor that it reads."""


class DiTFile(WorldFile):
    """A safetensors file with a `DiTConfig` in its metadata. See `WorldFile`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether the header has a `dit_config`."""
        return "dit_config" in safetensors_metadata(path)

    def header(self) -> WorldHeader:
        """Raises `WeightsError` also for a model of another world than the embedded one, which feeds it."""
        config, world = DiTConfig.read(self.path), DiTConfig()
        for name in _WORLD:
            found, right = getattr(config, name), getattr(world, name)
            if found != right:
                raise WeightsError(
                    f"{self.path} is of a world whose {name} is {found}, and the embedded one has {right}; "
                    f"train one on it"
                )
        return config.header

    def check(self) -> None:
        if self.path.stat().st_size > _MOST_BYTES:
            return
        import numpy as np

        with safe_open(self.path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                if file.get_slice(name).get_dtype() == "BF16":  # NumPy has none; `load` looks at it
                    continue
                if not np.isfinite(file.get_tensor(name)).all():
                    raise WeightsError(not_finite(self.path, name))

    # Imported in the methods: torch takes a second, and a plan needs none of them.

    def load(self, device: str) -> DiTModel:
        from paceline.stages.dit.model import DiTModel
        from paceline.stages.dit.network import load_dit

        return DiTModel(load_dit(self.path, device))

    def decoder(self, device: str) -> PatchDecoder:
        from paceline.stages.dit.patches import PatchDecoder

        return PatchDecoder(DiTConfig.read(self.path).grid_y)

    def feed(self, seed: int, prompt: int, on_truth: Callable[[np.ndarray], None] | None = None) -> GlyphFeed:
        from paceline.stages.dit.feed import GlyphFeed

        return GlyphFeed(seed, prompt, on_truth)


def not_finite(path: Path, name: str) -> str:
    """What is said of a tensor that is not finite."""
    return f"{path}: the weight '{name}' holds NaN or infinity; take weights from before training diverged"
