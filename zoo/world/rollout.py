"""Plain reference rollouts of a world model, many worlds at once: the four context modes in their serial definition.

The runtime has its own, pipelined implementation; this one is written to be checked by eye. Step s of frame T reads the
keys and values of frame T - d at a level:

    clean       S              the finished frame
    cascade     min(s + d, S)
    staggered   min(s + d - 1, S)
    matched     s

Level S are the keys and values of a clean pass (t = r = 0) over the finished frame; prompt frames have them at every
level. A frame reads the frames of its window, and the first ones of all, whose distance is clamped (`Past`); with
recall also a few older frames, chosen by pose (`paceline.pipeline.recall`), each world its own. A network with a memory
reads it once for each frame; a frame is written when it has left the window.

Shape suffixes: W worlds, T frames, N tokens, E token size, H heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from paceline.pipeline.recall import Recall
from paceline.stages.dit.network import Block, DiT, rotate
from paceline.stages.dit.patches import decode, ground_noise, patchify
from paceline.stages.memory import ContextMemory, Writes
from paceline.stages.memory.delta import DeltaMemory
from paceline.stages.world_file import step_times
from zoo.world.environment import TORUS, Bytes, Ints, Worlds

__all__ = ["MODES", "WINDOW", "ContextMode", "Control", "Past", "Record", "level_read", "record", "rollout"]

Control = Literal["none", "zero", "swap"]
"""What stands in for the memory: nothing, an empty one, or that of another world."""
ContextMode = Literal["clean", "cascade", "staggered", "matched"]
MODES: tuple[ContextMode, ...] = get_args(ContextMode)
WINDOW = 8  # earlier frames that a frame reads, beside the sinks


@dataclass(frozen=True, slots=True)
class Past:
    """What frames see of the past."""

    window: int = WINDOW
    sinks: int = 1
    recall: int = 0
    """Older frames that a frame recalls by pose, at most"""
    rule: ContextMemory | None = None
    """How a network with a memory writes and reads it; None: by the delta rule, by which it was trained"""
    control: Control = "none"


def level_read(mode: ContextMode, step: int, distance: int, steps: int) -> int:
    """The level at which step `step` reads the frame `distance` before. The clean pass is step `steps`."""
    match mode:
        case "clean":
            return steps
        case "cascade":
            return min(step + distance, steps)
        case "staggered":
            return min(step + distance - 1, steps)
        case "matched":
            return step


@dataclass(frozen=True, slots=True)
class Record:
    """True worlds over time: arrays `[T, W, ...]` of what `Worlds` held, and the frames it showed."""

    frames: Bytes
    ground: Bytes
    balls: Ints
    agent: Ints
    heading: Ints
    action: Ints
    pose: Ints


def record(seeds: list[int], frames: int) -> Record:
    """Run the default policy in the worlds of `seeds`; frame 0 is the world as it begins."""
    worlds = Worlds(seeds)
    rows: list[tuple[Ints, ...]] = []
    shown: list[Bytes] = []
    grounds: list[Bytes] = []
    for frame in range(frames):
        if frame:
            worlds.step(worlds.policy_actions())
        shown.append(worlds.frames())
        grounds.append(worlds.ground.copy())
        rows.append((worlds.balls, worlds.agent, worlds.heading, worlds.action, worlds.pose))
    balls, agent, heading, action, pose = (np.stack([row[i] for row in rows]) for i in range(5))
    return Record(np.stack(shown), np.stack(grounds), balls, agent, heading, action, pose)


@dataclass(slots=True)
class _Cached:
    """Keys and values of a frame: `levels[level][layer]` is (k, v) before rotation, `[W, H, N, D]`."""

    levels: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)


class _Player:
    """Computes frames of all worlds of a record, one forward after the other."""

    def __init__(self, model: DiT, truth: Record, mode: ContextMode, steps: int, past: Past | None = None) -> None:
        self.model, self.mode, self.steps = model, mode, steps
        self.past = past = past or Past()
        self.device = model.place.device
        self.action, self.heading, self.pose = (
            torch.from_numpy(x).to(self.device) for x in (truth.action, truth.heading, truth.pose)
        )
        self.cache: dict[int, _Cached] = {}
        worlds = truth.pose.shape[1]
        shape = model.config.header.memory
        self.rule = past.rule or DeltaMemory()
        self.states = [] if shape is None else [self.rule.empty(shape, self.device) for _ in range(worlds)]
        self.empty = self.states[0] if self.states else None
        self.unwritten: dict[int, Tensor] = {}
        self.read: Tensor | None = None
        self.behind = max(past.window, steps)
        self.recalls = [
            Recall(past.recall, past.window, past.sinks, self.behind, steps + 2, model.config.view)
            for _ in range(worlds)
        ]

    def _context(self, frame: int, step: int) -> list[tuple[int, list[tuple[Tensor, Tensor]]]]:
        """(frame, its layers) for every earlier frame that step `step` of `frame` reads."""
        earlier = sorted({*range(min(self.past.sinks, frame)), *range(max(0, frame - self.past.window), frame)})
        read = []
        for other in earlier:
            levels = self.cache[other].levels
            wanted = level_read(self.mode, step, frame - other, self.steps)
            read.append((other, levels[wanted if wanted in levels else self.steps]))
        return read

    def forward(self, frame: int, step: int, x: Tensor, t: float, r: float) -> Tensor:
        """Velocity of `x [W, N, E]` at a step of a frame; its keys and values are cached at level `step`."""
        model = self.model
        worlds = x.shape[0]
        times = torch.tensor([t, r], device=self.device).expand(worlds, 2)
        modulation = model.condition(times[:, 0], times[:, 1], self.action[frame], self.heading[frame])
        context = self._context(frame, step)
        own = model.space_rotation(self.pose[frame, :, 0], self.pose[frame, :, 1])
        rotations = [self._rotation(frame, [other] * worlds) for other, _ in context]
        recalled, mask = self._recalled(frame, step, len(context) + 1)
        rotations += [rotation for rotation, _ in recalled]
        context += [(-1, layers) for _, layers in recalled]
        now = model.time_rotation(torch.tensor(0, device=self.device)).expand(*own.shape[:-1], -1)
        here = torch.cat([now, own], dim=-1)[:, None]
        layers: list[tuple[Tensor, Tensor]] = []
        h = model.enter(x, self.read)
        for layer, block in enumerate(model.blocks):
            if not isinstance(block, Block):
                raise TypeError(f"layer {layer} is a {type(block).__name__}, not a Block")
            mod = model.layer_modulation(modulation, layer)
            q, k, v = block.project(h, mod)
            layers.append((k, v))
            keys = [rotate(kv[layer][0], turn) for (_, kv), turn in zip(context, rotations, strict=True)]
            values = [kv[layer][1] for _, kv in context]
            k_all, v_all = torch.cat([*keys, rotate(k, here)], dim=2), torch.cat([*values, v], dim=2)
            h = block.finish(h, nnf.scaled_dot_product_attention(rotate(q, here), k_all, v_all, mask), mod)
        self.cache.setdefault(frame, _Cached()).levels[step] = layers
        return model.leave(h, modulation)

    def _rotation(self, frame: int, others: list[int]) -> Tensor:
        """Rotation of the keys of another frame in each world, as `frame` reads them: `[W, 1, N, P]`."""
        worlds = torch.arange(len(others), device=self.device)
        pose = self.pose[torch.tensor(others, device=self.device), worlds]
        space = self.model.space_rotation(pose[:, 0], pose[:, 1])
        lag = [min(frame - other, self.model.config.max_distance) for other in others]
        time = self.model.time_rotation(torch.tensor(lag, device=self.device))[:, None]
        return torch.cat([time.expand(*space.shape[:-1], -1), space], dim=-1)[:, None]

    def _recalled(
        self, frame: int, step: int, others: int
    ) -> tuple[list[tuple[Tensor, list[tuple[Tensor, Tensor]]]], Tensor | None]:
        """What the worlds recall, as (rotation, its layers), and which keys each world reads, `[W, 1, 1, M]`, where not
        all recall as many frames: `others` other frames, then these, before the frame's own."""
        for recall, pose in zip(self.recalls, self.pose[frame].tolist(), strict=True):
            if recall.seen == frame:
                recall.observe(frame, (pose[0], pose[1]))
        chosen = [recall.frames(frame) for recall in self.recalls] if self.past.recall else []
        most = max(map(len, chosen), default=0)
        found = []
        worlds = range(len(chosen))
        for place in range(most):
            # A world that recalls fewer frames reads frame 0 there, under a mask.
            other = [frames[place] if place < len(frames) else 0 for frames in chosen]
            held = [self.cache[f].levels for f in other]
            level = step if self.mode == "matched" else self.steps
            layers = [levels[level if level in levels else self.steps] for levels in held]
            kv = [
                (
                    torch.stack([layers[w][index][0][w] for w in worlds]),
                    torch.stack([layers[w][index][1][w] for w in worlds]),
                )
                for index in range(len(layers[0]))
            ]
            found.append((self._rotation(frame, other), kv))
        if all(len(frames) == most for frames in chosen):
            return found, None
        reads = [[True] * (others - 1) + [place < len(f) for place in range(most)] + [True] for f in chosen]
        mask = torch.tensor(reads, device=self.device).repeat_interleave(self.model.config.tokens, dim=1)
        return found, mask[:, None, None]

    def look_back(self, frame: int, prompt: int) -> None:
        """Write the frame that has left the window to the memory, and read it for `frame`. Prompt frames read an empty
        one."""
        memory = self.model.memory
        if memory is None or self.empty is None:
            return
        out = frame - self.behind - 1
        old = self.unwritten.pop(out, None)
        if old is not None:
            written = zip(*memory.writes(old, self.pose[out]), strict=True)
            self.states = [
                self.rule.write(state, Writes(*each)) for state, each in zip(self.states, written, strict=True)
            ]
        states = self.states
        if frame < prompt or self.past.control == "zero":
            states = [self.empty] * len(states)
        elif self.past.control == "swap":
            states = [states[-1], *states[:-1]]
        pose = self.pose[frame]
        keys = memory.keys(pose)
        held = [self.rule.attend(state, asked) for state, asked in zip(states, keys, strict=True)]
        self.read = memory.arrange(torch.stack(held), pose)

    def finish(self, frame: int, x: Tensor) -> None:
        """The clean pass over a finished frame; frames that left the window are forgotten."""
        self.forward(frame, self.steps, x, 0.0, 0.0)
        if self.states:
            self.unwritten[frame] = x
        for old in [f for f in self.cache if self.past.sinks <= f <= frame - self.past.window]:
            if not self.past.recall:
                del self.cache[old]
            elif self.mode != "matched" and old < frame - self.behind:
                self.cache[old].levels = {self.steps: self.cache[old].levels[self.steps]}

    def frame(self, frame: int, noise: Tensor) -> Tensor:
        """All denoising steps of a frame."""
        times = step_times(self.steps)
        x = noise
        for step in range(self.steps):
            t, r = times[step], times[step + 1]
            x = x - (t - r) * self.forward(frame, step, x, t, r)
        return x


@torch.no_grad()
def rollout(
    model: DiT, truth: Record, mode: ContextMode, steps: int, prompt: int = 4, seed: int = 0, forced: bool = False,
    past: Past | None = None,
) -> Bytes:  # fmt: skip
    """Frames `[T, W, 32, 32, 3]` that the model makes after `prompt` true ones, under the actions of the record.

    With `forced` every frame is predicted from true earlier frames; then only the mode `clean` has a meaning, and
    `ValueError` is raised for another.
    """
    if forced and mode != "clean":
        raise ValueError(f"true earlier frames have no level for the context mode {mode!r}; use 'clean'")
    player = _Player(model, truth, mode, steps, past)
    draw = np.random.Generator(np.random.Philox(key=[seed, 0x6E6F697365]))
    fields = torch.from_numpy(draw.standard_normal((truth.frames.shape[1], 2 * TORUS, 2 * TORUS, 3), dtype=np.float32))
    out = []
    for frame in range(len(truth.frames)):
        true = patchify(torch.from_numpy(truth.frames[frame])).to(player.device)
        x = true
        player.look_back(frame, prompt)
        if frame >= prompt:
            if model.config.noise == "ground":
                views = zip(fields, truth.pose[frame].tolist(), strict=True)
                noise = torch.stack([ground_noise(field, *pose) for field, pose in views])
            else:
                noise = torch.from_numpy(draw.standard_normal(true.shape, dtype=np.float32))
            x = player.frame(frame, noise.to(player.device))
        out.append(decode(x).cpu().numpy())
        player.finish(frame, true if forced else x)
    return np.stack(out)
