"""The embedded world model as the runtime knows it. See `stages/world_model.py` for what each method does.

Shape suffixes as there; E values of one token, P rotary pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paceline.kernels.philox import Purpose, normal
from paceline.pipeline.view import Pose
from paceline.stages.dit.config import DiTConfig, FrameCondition
from paceline.stages.dit.memory import GroundMemory
from paceline.stages.dit.network import DiT, rotate
from paceline.stages.dit.patches import PATCH, ground_noise
from paceline.stages.item import Meta
from paceline.stages.memory.protocol import Writes

__all__ = ["DiTModel", "DiTSession", "StartNoise"]


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


class DiTModel:
    """`DiT` behind the protocol `WorldModel`. Modulations depend on (t, r, action, heading) alone, so each is computed
    once and kept."""

    def __init__(self, network: DiT) -> None:
        self.network = network
        self.config = network.config
        self.header = network.config.header
        self.device = network.place.device
        self._modulations: dict[tuple[float, float, int, int], Tensor] = {}

    def condition(self, meta: Meta) -> FrameCondition:
        return FrameCondition(int(meta["action"]), int(meta["heading"]), int(meta["pose_y"]), int(meta["pose_x"]))

    def dummy_condition(self) -> FrameCondition:
        return FrameCondition(0, 0, 0, 0)

    def pose(self, condition: FrameCondition) -> Pose:
        return condition.pose_y, condition.pose_x

    def open(self, seed: int) -> DiTSession:
        return DiTSession(self, seed)

    def modulation(self, t: float, r: float, condition: FrameCondition) -> Tensor:
        """Modulations of all layers, `[1, 6 L + 2, C]`."""
        key = (t, r, condition.action, condition.heading)
        found = self._modulations.get(key)
        if found is None:
            found = self._modulations[key] = self.network.condition(
                torch.tensor([t], device=self.device),
                torch.tensor([r], device=self.device),
                torch.tensor([condition.action], device=self.device),
                torch.tensor([condition.heading], device=self.device),
            )
        return found

    def batch(self, embeddings: Sequence[Tensor]) -> Tensor:
        return embeddings[0] if len(embeddings) == 1 else torch.cat(list(embeddings))

    def enter(self, x: Tensor, read: Tensor | None = None) -> Tensor:
        return self.network.enter(x, read)

    def project(self, layer: int, x_RNC: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.network.block(layer).project(x_RNC, self.network.layer_modulation(embedding, layer))

    def finish(self, layer: int, x_RNC: Tensor, o_RHND: Tensor, embedding: Tensor) -> Tensor:
        return self.network.block(layer).finish(x_RNC, o_RHND, self.network.layer_modulation(embedding, layer))

    def leave(self, x_RNC: Tensor, embedding: Tensor) -> Tensor:
        return self.network.leave(x_RNC, embedding)

    def frame_rotation(self, condition: FrameCondition) -> Tensor:
        """Spatial rotation of a frame's tokens, complex `[N, P_y + P_x]`."""
        pose_y, pose_x = torch.tensor(self.pose(condition), device=self.device).unbind()
        return self.network.space_rotation(pose_y, pose_x)

    def rotation(self, frame: int, reads: Sequence[int], own: Sequence[Tensor]) -> Tensor:
        """Complex `[F + 1, N, P]`. Distances are clamped at `max_distance`."""
        distances = [min(frame - read, self.config.max_distance) for read in reads] + [0]
        time_FP = self.network.time_rotation(torch.tensor(distances, device=self.device))
        return torch.cat([time_FP[:, None].expand(-1, self.config.tokens, -1), torch.stack(list(own))], dim=-1)

    def rotate(self, x_HMD: Tensor, rotation_MP: Tensor) -> Tensor:
        return rotate(x_HMD, rotation_MP)

    # -- context memory ------------------------------------------------------------------------------------------------

    @property
    def _memory(self) -> GroundMemory:
        if self.network.memory is None:
            raise ValueError("the model was trained without a context memory")
        return self.network.memory

    def memory_writes(self, latent: Tensor, condition: FrameCondition) -> Writes:
        return Writes(*self._memory.writes(latent, self._place(condition)))

    def memory_queries(self, condition: FrameCondition) -> Tensor:
        return self._memory.keys(self._place(condition))

    def memory_read(self, held: Tensor, condition: FrameCondition) -> Tensor:
        return self._memory.arrange(held, self._place(condition))

    def memory_familiarity(self, held: Tensor, condition: FrameCondition) -> Tensor:
        """By cell of half a token's side, in the rows and columns of the picture: `[2 grid_y, 2 grid_x]`. It is what is
        read where a 1 was written with every cell: about 1 for a place that was written not long ago, and around 0 or
        below for one that never was. By a rule that is linear in the state the values of the whole ground have the mean
        0, as no key has a constant part: the more of it was seen, the more they tell new from old places."""
        y, x = self._memory.grid_y, self._memory.grid_x
        known = self._memory.arrange(held, self._place(condition)).view(y, x, 2, 2, -1)[..., -1]
        return known.movedim(2, 1).reshape(2 * y, 2 * x)

    def _place(self, condition: FrameCondition) -> Tensor:
        return torch.tensor(self.pose(condition), device=self.device)


class DiTSession:
    """The noise of a session. See `WorldSession`."""

    def __init__(self, model: DiTModel, seed: int) -> None:
        self._model = model
        self._noise = StartNoise(model.config, seed, model.device)

    def start_noise(self, frame: int, condition: FrameCondition) -> Tensor:
        """Tokens `[N, E]`."""
        return self._noise.at(frame, condition)

    def embed(self, frame: int, t: float, r: float, condition: FrameCondition) -> Tensor:
        """Modulations of all layers, `[1, 6 L + 2, C]`."""
        return self._model.modulation(t, r, condition)

    def step_to(self, frame: int, step: int, x: Tensor, output: Tensor, t: float, r: float) -> Tensor:
        """The output is the average velocity u: x_r = x_t - (t - r) u."""
        return torch.add(x, output, alpha=-(t - r))
