"""The noise that a session's frames start from: a function of its seed and of the frame, or of the ground it shows."""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.kernels.philox import Purpose, normal
from paceline.stages.dit.config import DiTConfig, FrameCondition
from paceline.stages.dit.patches import PATCH, ground_noise

__all__ = ["StartNoise"]


class StartNoise:
    """Noise of one session. With `DiTConfig.noise = "frame"` every frame draws its own; with `"ground"` one field lies
    on the torus and each frame cuts out what its view shows (see `ground_noise`)."""

    def __init__(self, config: DiTConfig, seed: int, device: str | torch.device = "cpu") -> None:
        self._config, self._seed, self._device = config, seed, device
        self._field: Tensor | None = None

    def at(self, frame: int, condition: FrameCondition) -> Tensor:
        """Standard normal tokens `[N, E]` of a frame."""
        config = self._config
        if config.noise == "frame":
            return normal(self._seed, frame, Purpose.noise, (config.tokens, config.token_dim), self._device)
        if self._field is None:
            side = config.torus * PATCH // 2  # poses count half tokens
            self._field = normal(self._seed, 0, Purpose.noise, (side, side, 3), self._device)
        return ground_noise(self._field, condition.pose_y, condition.pose_x, config.grid_y, config.grid_x)
