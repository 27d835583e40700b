"""Training sequences: which frames of an episode a sequence shows, and at which noise levels.

Frames: a run of consecutive frames, in half of the sequences led by one or two frames from further back, whose place on
the time axis is only 1 to 5 before the next: so the network learns to find a far memory by its pose, as it does at
inference, where distances are clamped.

Levels: independent per frame (diffusion forcing) or staggered as the `cascade` context mode leaves them (Rolling
Forcing): the newest frame is noise, each earlier one is a step further, older ones are clean.

Conflict: in the staggered pattern some tiles that the sequence has shown before are mixed with another world's, and the
velocity leads back to the true ones. So it is at inference: a frame begins to choose what a new tile shows before the
frame ahead of it has decided, and must give way as that one clears up (error recycling, Li et al. 2510.09212).

Noise: in most sequences it lies on the ground like a picture, so that frames which show the same ground begin from the
same noise there, as the runtime has it (`ground_noise`); in the others every frame has its own.

A batch is a function of (seed, step): its generator is made from both, so training resumes exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from paceline.stages.dit.patches import ground_noise, patchify
from paceline.stages.world_file import step_times
from zoo.world.emphasis import emphasis, times_shown
from zoo.world.environment import TILES, TORUS, VIEW, Bytes, Ints, Worlds, ground_in_view, pose_of, render
from zoo.world.flowmap import Sequences

__all__ = ["EPISODE", "WORLD_SEEDS", "Episodes", "Recipe", "draw_batch", "draw_levels", "noised"]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

EPISODE = 56  # frames simulated for a sequence
WORLD_SEEDS = 1 << 40  # training worlds have seeds from here on; held-out worlds lie below


@dataclass(frozen=True, slots=True)
class Recipe:
    """How batches are drawn. `map_share` is the share of sequences that train the flow map (r < t)."""

    batch: int = 16
    frames: int = 10
    memory: float = 0.5
    cascade: float = 0.5
    clean: float = 0.3
    map_share: float = 0.0
    blur: float = 0.3
    conflict: float = 0.3
    grounded: float = 0.8


def _levels(draw: np.random.Generator, recipe: Recipe, staggered: bool) -> tuple[Floats, Floats]:
    """Times t and the ends of the steps that they begin, each `[F]`."""
    f = recipe.frames
    if staggered:
        steps = int(draw.choice([1, 2, 4, 8], p=[0.1, 0.3, 0.4, 0.2]))
        times = np.array(step_times(steps))
        level = np.minimum(np.arange(f)[::-1], steps)
        t, end = times[level], times[np.minimum(level + 1, steps)]
        if steps > 1 and draw.random() < 0.5:  # between the steps
            jitter = draw.uniform(-0.5, 0.5) / steps
            t = np.where((t > 0) & (t < 1), np.clip(t + jitter, 0.02, 1.0), t)
        return t, np.minimum(end, t)
    t = 1 / (1 + np.exp(-(0.2 + 1.2 * draw.standard_normal(f))))
    t = np.where(draw.random(f) < 0.12, 1.0, t)  # a step always begins at pure noise: do not leave it to the tail
    t = np.where(draw.random(f) < recipe.clean, 0.0, t)
    return t, np.maximum(t - draw.choice([1.0, 0.5, 0.25, 0.125]), 0.0)


def draw_levels(draw: np.random.Generator, recipe: Recipe, mapped: int) -> tuple[Floats, Floats, Bools]:
    """Times t >= r of a batch, each `[B, F]`, and which sequences are staggered, `[B]`.

    r < t only in the first `mapped` sequences.
    """
    staggered = draw.random(recipe.batch) < recipe.cascade
    pairs = [_levels(draw, recipe, bool(each)) for each in staggered]
    t, end = np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])
    # A step's own end, clean at once, or anything between.
    kind = draw.random((mapped, 1))
    free = t[:mapped] * draw.random((mapped, recipe.frames))
    r = t.copy()
    r[:mapped] = np.where(kind < 0.4, end[:mapped], np.where(kind < 0.7, 0.0, free))
    return t, r, staggered


def _choose_frames(draw: np.random.Generator, recipe: Recipe, pose: Ints) -> tuple[list[int], list[int]]:
    """Episode frames of a sequence and their places on the time axis, given the poses `[EPISODE, 2]`."""
    f = recipe.frames
    memories = int(draw.integers(1, 3)) if draw.random() < recipe.memory else 0
    start = EPISODE - (f - memories)
    # Of a few candidates take the one whose view comes nearest to the last frame's: most far frames are no help.
    chosen: list[int] = []
    for _ in range(memories):
        candidates = draw.integers(0, start, 4)
        away = np.abs((pose[candidates] - pose[-1] + 24) % 48 - 24).max(axis=-1)
        chosen.append(int(candidates[np.argmin(away)]))
    chosen = sorted(set(chosen))
    frames = chosen + list(range(EPISODE - (f - len(chosen)), EPISODE))
    gaps = [min(int(draw.integers(1, 6)), b - a) if b <= start else 1 for a, b in pairwise(frames)]
    return frames, [0, *np.cumsum(gaps).tolist()]


def _tokens(pixels: npt.NDArray[Any]) -> Tensor:
    """Values of pixels `[B, F, 32, 32]` spread over the values of tokens, `[B, F, N, E]`, as floats."""
    b, f = pixels.shape[:2]
    patches = pixels.reshape(b, f, VIEW, 4, VIEW, 4, 1).swapaxes(3, 4).repeat(3, axis=-1)
    return torch.from_numpy(patches.reshape(b, f, VIEW * VIEW, 48).astype(np.float32))


def _conflict(draw: np.random.Generator, recipe: Recipe, staggered: Bools, pose: Ints) -> Tensor:
    """How much of another world shows in each value of sequences with poses `[B, F, 2]`: `[B, F, N, E]` in [0, 1]."""
    b, f = pose.shape[:2]
    shape = (b, f, TILES, TILES)
    mixed = draw.random(shape) * (draw.random(shape) < recipe.conflict) * staggered[:, None, None, None]
    seen = ground_in_view(mixed.reshape(-1, TILES, TILES), pose.reshape(-1, 2)).reshape(b, f, 4 * VIEW, 4 * VIEW)
    return _tokens(np.where(times_shown(pose) > 0, seen, 0.0))


def _noise(draw: np.random.Generator, recipe: Recipe, pose: Ints) -> Tensor:
    """Standard normal noise of frames at poses `[B, F, 2]`: `[B, F, N, E]`."""
    b, f = pose.shape[:2]
    free = torch.from_numpy(draw.standard_normal((b, f, VIEW * VIEW, 48), dtype=np.float32))
    fields = torch.from_numpy(draw.standard_normal((b, 2 * TORUS, 2 * TORUS, 3), dtype=np.float32))
    for row in np.flatnonzero(draw.random(b) < recipe.grounded).tolist():
        for frame, (y, x) in enumerate(pose[row].tolist()):
            free[row, frame] = ground_noise(fields[row], y, x)
    return free


@dataclass(frozen=True, slots=True)
class Episodes:
    """Worlds as they were over time: ground `[B, T, 24, 24]`, balls `[B, T, 6, 2]`, agent, pose `[B, T, 2]`, heading,
    action `[B, T]`; and what their frames read from a memory, `[B, T, N, R]`, if they have one."""

    ground: Bytes
    balls: Ints
    agent: Ints
    heading: Ints
    action: Ints
    pose: Ints
    read: npt.NDArray[np.float16] | None = None

    @classmethod
    def walk(cls, seeds: list[int], frames: int) -> Episodes:
        """Let worlds run for some frames under their own policy."""
        worlds = Worlds(seeds)
        past: list[tuple[Bytes, Ints, Ints, Ints, Ints]] = []
        for _ in range(frames):
            worlds.step(worlds.policy_actions())
            past.append((worlds.ground.copy(), worlds.balls, worlds.agent, worlds.heading, worlds.action))
        ground = np.stack([frame[0] for frame in past], axis=1)
        rows = zip(*(frame[1:] for frame in past), strict=True)
        balls, agent, heading, action = (np.stack(column, axis=1) for column in rows)
        pose = pose_of(agent.reshape(-1, 2), heading.reshape(-1)).reshape(len(seeds), frames, 2)
        return cls(ground, balls, agent, heading, action, pose)

    def cut(self, worlds: Ints, starts: Ints, frames: int) -> Episodes:
        """`frames` frames of some of the worlds, from their starts on."""
        at = (worlds[:, None], starts[:, None] + np.arange(frames))
        parts: list[Any] = [None if x is None else x[at] for x in (*self._arrays, self.read)]
        return Episodes(*parts)

    def render(self, frames: slice) -> Bytes:
        """What the worlds showed, `[B, T, 32, 32, 3]`."""
        parts: list[Any] = [x[:, frames] for x in (self.ground, self.balls, self.agent, self.heading)]
        shown = render(*(part.reshape(-1, *part.shape[2:]) for part in parts))
        return shown.reshape(*parts[0].shape[:2], *shown.shape[1:])

    @property
    def _arrays(self) -> tuple[Any, ...]:
        return self.ground, self.balls, self.agent, self.heading, self.action, self.pose


def draw_batch(recipe: Recipe, seed: int, step: int) -> Sequences:
    """The batch of training step `step`."""
    draw = np.random.Generator(np.random.Philox(key=[seed, step]))
    episodes = Episodes.walk((WORLD_SEEDS + draw.integers(0, 1 << 48, recipe.batch)).tolist(), EPISODE)
    return noised(draw, recipe, episodes)


def noised(draw: np.random.Generator, recipe: Recipe, episodes: Episodes) -> Sequences:
    """One sequence out of each of `recipe.batch` episodes of `EPISODE` frames, with noise."""
    b, f = recipe.batch, recipe.frames
    ground, balls, agent, heading, action, pose = (
        episodes.ground, episodes.balls, episodes.agent, episodes.heading, episodes.action, episodes.pose
    )  # fmt: skip
    choice = [_choose_frames(draw, recipe, pose[i]) for i in range(b)]
    at = (np.arange(b)[:, None], np.array([c[0] for c in choice]))
    shown = [x[at].reshape(b * f, *x.shape[2:]) for x in (ground, balls, agent, heading)]
    other = [np.roll(ground, 1, axis=0)[at].reshape(b * f, TILES, TILES), *shown[1:]]
    x0, strange = (patchify(torch.from_numpy(render(*parts))).view(b, f, 64, 48) for parts in (shown, other))
    weight = _tokens(emphasis(ground, balls, agent, action, pose, at).reshape(b, f, 4 * VIEW, 4 * VIEW))
    mapped = round(recipe.map_share * b)
    level, end, staggered = draw_levels(draw, recipe, mapped)
    t, r = torch.from_numpy(level).float(), torch.from_numpy(end).float()
    split = r + (t - r) * torch.from_numpy(draw.random(level.shape)).float()
    eps = _noise(draw, recipe, pose[at])
    time = t[..., None, None]
    # A frame gives way while it is noisy: the conflict fades with the noise.
    drift = _conflict(draw, recipe, staggered, pose[at]) * time * (strange - x0)
    x = x0 + time * (eps - x0) + (1 - time) * drift
    velocity = eps - x0 + (1 - time) / time.clamp(min=0.01) * drift
    # Frames that count as clean are not perfect at inference: some sequences see them slightly off.
    blur = np.where(draw.random((b, 1)) < recipe.blur, draw.uniform(0, 0.08, (b, 1)), 0.0)
    x = x + (torch.from_numpy(blur).float() * (t == 0))[..., None, None] * torch.from_numpy(
        draw.standard_normal(x0.shape, dtype=np.float32)
    )
    return Sequences(
        x=x,
        velocity=velocity,
        t=t,
        r=r,
        split=split,
        weight=weight,
        action=torch.from_numpy(action[at]),
        heading=torch.from_numpy(heading[at]),
        pose=torch.from_numpy(pose[at]),
        index=torch.tensor([c[1] for c in choice]),
        mapped=mapped,
        read=None if episodes.read is None else torch.from_numpy(episodes.read[at].astype(np.float32)),
    )
