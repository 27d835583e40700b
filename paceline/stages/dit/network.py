"""Causal diffusion transformer over frames of tokens: the network of the embedded world model.

A frame is `N` tokens on a grid. Attention is full inside a frame and causal over frames; a frame reads the keys
and values of earlier frames at whatever noise level those were computed (diffusion forcing, Chen et al. 2024). The
network predicts the average velocity of the flow from time `t` to time `r <= t`,

    x_t = (1 - t) x_0 + t eps,        x_r = x_t - (t - r) u(x_t, t, r),

so that one network serves any number of steps (flow maps: MeanFlow, Geng et al. 2025; AnyFlow 2605.13724); at r = t it
is plain flow matching.

Positions are rotary over three axes (t, y, x). The spatial axes are *world* coordinates on a torus, from the camera
pose that the actions imply, in units of half a token: their table is periodic and can't be outrun. The time axis
is the distance in frames between query and key, clamped at `max_distance`. Keys leave the network **before** rotation
and are rotated where they are read, so a cached frame serves every later frame.

Shape suffixes: B batch, F frames, R rows (frames computed together), N tokens of a frame, M tokens of the context,
C width, H heads, D head size, P rotary pairs (D / 2).
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from paceline.stages.dit.config import LAGS, DiTConfig
from paceline.stages.dit.file import not_finite
from paceline.stages.dit.memory import GroundMemory
from paceline.stages.finite import is_finite
from paceline.stages.world_file import WeightsError

__all__ = ["Block", "DiT", "load_dit", "rotate", "save_dit"]


def _sinusoid(value: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of times in [0, 1]; `[...]` to `[..., width]`.

    Its fastest angle turns 32 rad from 0 to 1, not the usual 1000: the flow map differentiates the network by t, and a
    fast embedding makes that derivative noise (sCM, Lu & Song 2024).
    """
    frequency = torch.exp(torch.arange(width // 2, device=value.device) * (-math.log(100.0) / (width // 2)))
    angle = value[..., None] * 32.0 * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), scale + 1.0)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate pairs of `x [..., D]` by unit complex numbers `rotation [..., P]`."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotation).flatten(-2)


class Block(nn.Module):
    """One transformer layer with AdaLN modulation, split at the point where keys and values are known."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        c = config.width
        self.heads, self.head_dim = config.heads, config.head_dim
        self.qkv = nn.Linear(c, 3 * c)
        self.out = nn.Linear(c, c)
        self.up = nn.Linear(c, 4 * c)
        self.down = nn.Linear(4 * c, c)

    def project(self, x_RNC: Tensor, modulation: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values before rotation, each `[R, H, N, D]`."""
        h = _modulate(x_RNC, modulation[0], modulation[1])
        qkv: Tensor = self.qkv(h)
        qkv = qkv.view(*qkv.shape[:2], 3, self.heads, self.head_dim)
        q, k = F.rms_norm(qkv[:, :, :2], (self.head_dim,)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, qkv[:, :, 2].transpose(1, 2)

    def finish(self, x_RNC: Tensor, o_RHND: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        """Residual stream after attention output `o` and the feed-forward part."""
        x = torch.addcmul(x_RNC, modulation[2], self.out(o_RHND.transpose(1, 2).flatten(-2)))
        h = F.gelu(self.up(_modulate(x, modulation[3], modulation[4])), approximate="tanh")
        return torch.addcmul(x, modulation[5], self.down(h))


class DiT(nn.Module):
    """The network. `forward` runs whole sequences (training); the methods below it run one layer of some frames."""

    space_table: Tensor
    time_table: Tensor
    token_y: Tensor
    token_x: Tensor

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        config.check()
        self.config = config
        c = config.width
        self.embed = nn.Linear(config.token_dim, c)
        self.place = nn.Parameter(torch.zeros(config.tokens, c))
        self.action = nn.Embedding(config.actions, c)
        self.heading = nn.Embedding(config.headings, c)
        self.time = nn.Sequential(nn.Linear(2 * c, c), nn.SiLU(), nn.Linear(c, c))
        self.modulation = nn.Linear(c, (6 * config.layers + 2) * c)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.head = nn.Linear(c, config.token_dim)
        self.memory = None if config.memory is None else GroundMemory(config)
        nn.init.normal_(self.place, std=0.02)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        index = torch.arange(config.torus, dtype=torch.float64)
        space = torch.tensor(config.space_frequencies, dtype=torch.float64)
        angle = 2 * math.pi * torch.outer(index, space) / config.torus
        self.register_buffer("space_table", torch.polar(torch.ones_like(angle), angle).to(torch.complex64), False)
        lag = torch.arange(LAGS, dtype=torch.float64)
        angle = -torch.outer(lag, torch.tensor(config.time_frequencies, dtype=torch.float64))
        self.register_buffer("time_table", torch.polar(torch.ones_like(angle), angle).to(torch.complex64), False)
        token = torch.arange(config.tokens)
        self.register_buffer("token_y", 2 * (token // config.grid_x), False)
        self.register_buffer("token_x", 2 * (token % config.grid_x), False)

    # -- conditions and positions ------------------------------------------------------------------------------------

    def condition(self, t: Tensor, r: Tensor, action: Tensor, heading: Tensor) -> Tensor:
        """Modulations of all layers from flow times `t >= r` and frame conditions, each `[...]`; returns
        `[..., 6 L + 2, C]`."""
        c = self.config.width
        emb = self.time(torch.cat([_sinusoid(t, c), _sinusoid(t - r, c)], dim=-1))
        emb = emb + self.action(action) + self.heading(heading)
        modulation: Tensor = self.modulation(F.silu(emb))
        return modulation.view(*t.shape, -1, c)

    def space_rotation(self, pose_y: Tensor, pose_x: Tensor) -> Tensor:
        """Spatial rotations of the tokens of frames at poses `[...]`: complex `[..., N, P_y + P_x]`."""
        y = (pose_y[..., None] + self.token_y) % self.config.torus
        x = (pose_x[..., None] + self.token_x) % self.config.torus
        return torch.cat([self.space_table[y], self.space_table[x]], dim=-1)

    def time_rotation(self, distance: Tensor) -> Tensor:
        """Rotations of keys `distance [...]` frames before the query: complex `[..., P_t]`."""
        return self.time_table[distance]

    # -- one layer of some frames (inference) ------------------------------------------------------------------------

    def block(self, layer: int) -> Block:
        """One layer."""
        return cast(Block, self.blocks[layer])

    def enter(self, x_RNE: Tensor, read_RNR: Tensor | None = None) -> Tensor:
        """Tokens to the residual stream `[R, N, C]`, with what was read from the memory for each frame, if anything."""
        h: Tensor = self.embed(x_RNE)
        h = h + self.place
        return h if read_RNR is None or self.memory is None else h + self.memory.embed(read_RNR)

    def leave(self, x_RNC: Tensor, modulation_R: Tensor) -> Tensor:
        """Residual stream to the velocity `[R, N, token_dim]`."""
        shift, scale = modulation_R[:, None, -2], modulation_R[:, None, -1]
        velocity: Tensor = self.head(_modulate(x_RNC, shift, scale))
        return velocity

    def layer_modulation(self, modulation_R: Tensor, layer: int) -> tuple[Tensor, ...]:
        """The six modulations of a layer, each `[R, 1, C]`."""
        return modulation_R[:, None, 6 * layer : 6 * layer + 6].unbind(2)

    # -- whole sequences (training) ----------------------------------------------------------------------------------

    def forward(
        self, x: Tensor, t: Tensor, r: Tensor, action: Tensor, heading: Tensor, pose: Tensor, index: Tensor
    ) -> Tensor:
        """Velocities of all frames of sequences.

        x `[B, F, N, token_dim]`; t, r, action, heading, index `[B, F]`; pose `[B, F, 2]`. `index` is each frame's place
        on the time axis (rising; a gap stands for memory from further back). Frame f reads frames <= f.
        """
        b, f, n, _ = x.shape
        modulation = self.condition(t, r, action, heading)
        modulation_tok = modulation[:, :, None].expand(-1, -1, n, -1, -1).flatten(1, 2)
        h = (self.embed(x) + self.place).flatten(1, 2)
        space = self.space_rotation(pose[..., 0], pose[..., 1])
        # Query at index i and key at index j: the relative rotation is that of distance i - j.
        key_rotation = torch.cat(
            [self.time_table[index].conj()[:, :, None].expand(-1, -1, n, -1), space], dim=-1
        ).flatten(1, 2)[:, None]
        frame = torch.arange(f * n, device=x.device) // n
        mask = frame[:, None] >= frame[None, :]
        for layer in range(self.config.layers):
            block = self.block(layer)
            mod = modulation_tok[:, :, 6 * layer : 6 * layer + 6].unbind(2)
            q, k, v = block.project(h, mod)
            o = F.scaled_dot_product_attention(rotate(q, key_rotation), rotate(k, key_rotation), v, attn_mask=mask)
            h = block.finish(h, o, mod)
        out: Tensor = self.head(_modulate(h, modulation_tok[:, :, -2], modulation_tok[:, :, -1]))
        return out.view(b, f, n, -1)


def save_dit(model: DiT, path: Path, extra: dict[str, str] | None = None) -> None:
    """Write weights and configuration to one safetensors file."""
    metadata = {"dit_config": json.dumps(asdict(model.config)), **(extra or {})}
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(state, str(path), metadata=metadata)


def load_dit(path: Path, device: str = "cpu") -> DiT:
    """Read a model written by `save_dit`. Raises `FileNotFoundError`, or `WeightsError` with what to do; a weight that
    is NaN or infinite is refused."""
    model = DiT(DiTConfig.read(path))
    model.load_state_dict(load_file(str(path)))
    for name, weight in model.named_parameters():
        if not is_finite(weight):
            raise WeightsError(not_finite(path, name))
    return model.to(device).eval().requires_grad_(False)
