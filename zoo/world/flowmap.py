"""Training losses of the world model: flow matching, and the flow map that makes one or two steps enough.

Along the straight path x_t = (1 - t) x_0 + t eps the velocity is v = eps - x_0. The network predicts the average
velocity u(x_t, t, r) from t to r. Flow matching trains u(x_t, t, t) = v. The flow map trains that the way from t to r
is the way from t to s and then on from s to r, for any s between (SplitMeanFlow, Guo et al. 2507.16884; Shortcut
models, Frans et al. 2024):

    (t - r) u(x_t, t, r) = (t - s) u(x_t, t, s) + (s - r) u(x_s, s, r),    x_s = x_t - (t - s) u(x_t, t, s).

It is the integral form of the MeanFlow identity u = v - (t - r) du/dt (Geng et al. 2505.13447). The differential form,
with a central difference for du/dt, diverged here within 100 steps: it multiplies the network's ripples in t by their
frequency, whereas this form only averages. What a frame reads of earlier frames stands still while its own time moves,
exactly as at inference, where a step reads KV that was computed before: both legs read the keys and values of the
training pass.

Shape suffixes: B batch, F frames, N tokens of a frame, C width, H heads, D head size, E token size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as nnf
from torch import Tensor

from paceline.stages.dit.network import Block, DiT

__all__ = ["KV", "Sequences", "joint_forward", "loss", "map_targets"]

KV = list[tuple[Tensor, Tensor]]
"""Rotated keys and values of every layer, each `[B, F, H, N, D]`."""


@dataclass(frozen=True, slots=True)
class Sequences:
    """Noised sequences of frames, as the network takes them.

    x and velocity `[B, F, N, E]`; t, r, split, action, heading, index `[B, F]`; pose `[B, F, 2]`; `mapped` counts the
    first sequences of the batch, whose r may lie below t (all others have r = t); `split` lies between r and t;
    `weight` `[B, F, N, E]` says how much the error of a value counts; `read` `[B, F, N, R]` is what each frame
    read from the memory, if the network has one.
    """

    x: Tensor
    velocity: Tensor
    t: Tensor
    r: Tensor
    split: Tensor
    weight: Tensor
    action: Tensor
    heading: Tensor
    pose: Tensor
    index: Tensor
    mapped: int
    read: Tensor | None = None

    def _each(self, change: Callable[[Tensor], Tensor], mapped: int) -> Sequences:
        return Sequences(
            x=change(self.x),
            velocity=change(self.velocity),
            t=change(self.t),
            r=change(self.r),
            split=change(self.split),
            weight=change(self.weight),
            action=change(self.action),
            heading=change(self.heading),
            pose=change(self.pose),
            index=change(self.index),
            mapped=mapped,
            read=None if self.read is None else change(self.read),
        )

    def to(self, device: str) -> Sequences:
        """The sequences on another device."""
        return self._each(lambda part: part.to(device), self.mapped)

    def first(self, count: int) -> Sequences:
        """The first `count` sequences."""
        return self._each(lambda part: part[:count], min(count, self.mapped))


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate` of the network in real arithmetic (which half precision and compilers take)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def _attend(q: Tensor, k: Tensor, v: Tensor, context: tuple[Tensor, Tensor] | None) -> Tensor:
    """Attention of all frames, `[B, F, H, N, D]`; every frame sees the frames before it and itself."""
    f, n = q.shape[1], q.shape[3]
    if context is not None:
        past_k, past_v = context
        out = []
        for frame in range(f):
            keys = torch.cat([past_k[:, :frame], k[:, frame : frame + 1]], dim=1).transpose(1, 2).flatten(2, 3)
            values = torch.cat([past_v[:, :frame], v[:, frame : frame + 1]], dim=1).transpose(1, 2).flatten(2, 3)
            out.append(nnf.scaled_dot_product_attention(q[:, frame], keys, values))
        return torch.stack(out, dim=1)
    q, k, v = (x.transpose(1, 2).flatten(2, 3) for x in (q, k, v))
    frame_of = torch.arange(f * n, device=q.device) // n
    out, half = [], (f + 1) // 2 * n
    # In two halves: the first half of the frames never sees the second, so a quarter of the scores is not computed.
    for low, high in ((0, half), (half, f * n)):
        mask = frame_of[low:high, None] >= frame_of[None, :high]
        out.append(nnf.scaled_dot_product_attention(q[:, :, low:high], k[:, :, :high], v[:, :, :high], attn_mask=mask))
    whole = torch.cat(out, dim=2)
    return whole.view(*whole.shape[:2], f, n, -1).transpose(1, 2)


def joint_forward(model: DiT, s: Sequences, context: KV | None = None) -> tuple[Tensor, KV]:
    """Velocities `[B, F, N, E]` of all frames at once, and their keys and values.

    The same function as `DiT.forward`, but cheaper: modulations are not copied to every token, and fewer hidden scores
    are computed. With `context` (from an earlier call) frames read the frames before them there.
    """
    n = model.config.tokens
    modulation = model.condition(s.t, s.r, s.action, s.heading)[:, :, None]
    space = model.space_rotation(s.pose[..., 0], s.pose[..., 1])
    time = model.time_rotation(s.index).conj()[:, :, None].expand(-1, -1, n, -1)
    rotation = torch.cat([time, space], dim=-1)[:, :, None]
    cos, sin = rotation.real.contiguous(), rotation.imag.contiguous()
    h = model.enter(s.x, s.read)
    kv: KV = []
    for layer, block in enumerate(model.blocks):
        if not isinstance(block, Block):
            raise TypeError(f"layer {layer} is a {type(block).__name__}, not a Block")
        mod = modulation[:, :, :, 6 * layer : 6 * layer + 6].unbind(3)
        qkv: Tensor = block.qkv(_modulate(h, mod[0], mod[1]))
        q, k, v = qkv.view(*qkv.shape[:3], 3, block.heads, block.head_dim).permute(3, 0, 1, 4, 2, 5).unbind(0)
        size = (block.head_dim,)
        q, k = _turn(nnf.rms_norm(q, size), cos, sin).to(v.dtype), _turn(nnf.rms_norm(k, size), cos, sin).to(v.dtype)
        kv.append((k, v))
        o = _attend(q, k, v, None if context is None else context[layer])
        h = torch.addcmul(h, mod[2], block.out(o.transpose(2, 3).flatten(-2)))
        x = nnf.gelu(block.up(_modulate(h, mod[3], mod[4])), approximate="tanh")
        h = torch.addcmul(h, mod[5], block.down(x))
    return model.head(_modulate(h, modulation[:, :, :, -2], modulation[:, :, :, -1])), kv


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, nnf.layer_norm(x, x.shape[-1:]), scale + 1.0)


def map_targets(model: DiT, s: Sequences, kv: KV) -> Tensor:
    """Average velocities from t to r by way of `s.split`, for the mapped sequences of `s`: `[mapped, F, N, E]`.

    Where r = t it is the velocity of the path itself.
    """
    part = s.first(s.mapped)
    t, r, between = (time[..., None, None] for time in (part.t, part.r, part.split))
    with torch.no_grad():
        context = [(k[: s.mapped], v[: s.mapped]) for k, v in kv]
        first, _ = joint_forward(model, replace(part, r=part.split), context)
        halfway = part.x - (t - between) * first
        second, _ = joint_forward(model, replace(part, x=halfway, t=part.split), context)
        share = (t - between) / (t - r).clamp(min=1e-6)
        return torch.where(t > r, share * first + (1 - share) * second, part.velocity)


def loss(model: DiT, s: Sequences, autocast: bool) -> tuple[Tensor, Tensor]:
    """The loss to minimise, and the squared error of every frame `[B, F]` (0 where a frame was given clean)."""
    with torch.autocast(s.x.device.type, dtype=torch.bfloat16, enabled=autocast):
        u, kv = joint_forward(model, s)
        target = s.velocity
        if s.mapped:
            target = torch.cat([map_targets(model, s, kv).float(), s.velocity[s.mapped :]])
    error = ((u.float() - target).square() * s.weight).mean(dim=-1) * (s.t > 0).to(target.dtype)[..., None]
    total = error.sum() / ((s.t > 0).sum() * error.shape[-1]).clamp(min=1)
    return total, error.mean(dim=-1).detach()
