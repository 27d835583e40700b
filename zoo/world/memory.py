"""Training of the context memory: first the memory alone, then what it read beside the network's own batches.

*Alone* (`rehearse`). Worlds are walked, every frame is written, and a small decoder that is thrown away afterwards has
to tell the pixels of cells that were seen before from what is read before the frame is written. Gradients go back
through the chain of states. The gate learns to leave out balls and the agent: they are elsewhere when the place is seen
again.

*Beside the network* (`Histories`). Long walks are written with that memory once and for all, and what each frame reads
is kept, so that training never runs the chain. As at inference, the memory of the last frame of a sequence ends where
the sequence begins: it lags behind by one frame less than the sequence has. What the memory holds is then older than
what the sequence shows, so where the two differ, as where the agent has painted, the sequence is right. Walks begin at
random times with an empty memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from paceline.kernels.delta_rule import delta_read, delta_write
from paceline.stages.dit.config import CELLS
from paceline.stages.dit.memory import GroundMemory, cells_of
from paceline.stages.dit.patches import patchify
from zoo.world.batches import EPISODE, WORLD_SEEDS, Episodes, Recipe, noised
from zoo.world.emphasis import times_shown
from zoo.world.environment import Bools, Ints, occluded_pixels
from zoo.world.flowmap import Sequences

__all__ = ["LENGTHS", "Histories", "MemoryPlan", "rehearse"]

LENGTHS = (4, 10)
"""Frames of the sequences that the network learns to read from, in turn by world; the memory lags one frame less."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How the memory is trained alone, and how long the walks are that the network learns from."""

    steps: int = 240
    worlds: int = 8
    frames: int = 56
    rate: float = 3e-3
    walks: int = 192
    length: int = 320
    """Frames of a walk, after `EPISODE` frames in which the memory may still be empty"""
    seed: int = 1


def _legible(episodes: Episodes) -> Bools:
    """Pixels that neither a ball nor the agent covers, `[B, T, 32, 32]`."""
    parts = (episodes.balls, episodes.agent, episodes.heading)
    hidden = occluded_pixels(*(part.reshape(-1, *part.shape[2:]) for part in parts))
    return ~hidden.reshape(*episodes.pose.shape[:2], 32, 32)


def _whole_cells(pixels: Bools) -> Tensor:
    """Cells whose pixels all count, `[..., N, 4]`."""
    lead = pixels.shape[:-2]
    spread = np.repeat(pixels.reshape(*lead, 8, 4, 8, 4, 1), 3, axis=-1).swapaxes(-4, -3)
    return cells_of(torch.from_numpy(spread.reshape(*lead, 64, 48))).all(-1)


def rehearse(memory: GroundMemory, plan: MemoryPlan, note: Callable[[dict[str, float]], None] = lambda _: None) -> None:
    """Train the memory alone. What reads it into the network stays as it is."""
    with torch.random.fork_rng():
        torch.manual_seed(plan.seed)
        decoder = nn.Sequential(nn.Linear(memory.values_size, 64), nn.GELU(), nn.Linear(64, 12))
    mine = [*memory.value.parameters(), *memory.gate.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(mine, lr=plan.rate)
    draw = np.random.Generator(np.random.Philox(key=[plan.seed, 0x6D656D6F]))
    started = time.monotonic()
    for step in range(plan.steps):
        episodes = Episodes.walk((WORLD_SEEDS + draw.integers(0, 1 << 48, plan.worlds)).tolist(), plan.frames)
        x = patchify(torch.from_numpy(episodes.render(slice(None))))
        legible = _legible(episodes)
        known = _whole_cells(legible & (times_shown(episodes.pose) > 0))
        pose = torch.from_numpy(episodes.pose)
        k, v, beta = memory.writes(x, pose)
        state, reads = memory.empty(plan.worlds), []
        for frame in range(plan.frames):
            reads.append(delta_read(state, k[:, frame]))
            state = delta_write(state, k[:, frame], v[:, frame], beta[:, frame])
        read = memory.arrange(torch.stack(reads, dim=1), pose)
        made = decoder(read.view(*read.shape[:-1], CELLS, memory.values_size))
        error = (made - cells_of(x)).square().mean(-1)
        loss = (error * known).sum() / known.sum().clamp(min=1)
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * min(1.0, (step + 1) / 20) * min(1.0, (plan.steps - step) / (plan.steps / 3))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(mine, 1.0)
        optimizer.step()
        if (step + 1) % 20 == 0:
            hidden = memory.arrange(beta[..., None], pose)[~_whole_cells(legible)]
            note(
                {
                    "memory_step": step + 1,
                    "memory_loss": loss.item(),
                    "gate": beta.mean().item(),
                    "gate_covered": hidden.mean().item(),
                    "seconds_per_step": (time.monotonic() - started) / (step + 1),
                }
            )


class Histories:
    """Long walks with what each of their frames reads."""

    def __init__(self, episodes: Episodes) -> None:
        self.episodes = episodes

    @classmethod
    @torch.no_grad()
    def walk(cls, memory: GroundMemory, plan: MemoryPlan, part: int = 32) -> Histories:
        """Walk the worlds and write their frames."""
        draw = np.random.Generator(np.random.Philox(key=[plan.seed, 0x68697374]))
        total = EPISODE + plan.length
        found, births = [], draw.integers(0, total // 2, plan.walks) * (draw.random(plan.walks) < 0.5)
        for first in range(0, plan.walks, part):
            count = min(part, plan.walks - first)
            episodes = Episodes.walk((WORLD_SEEDS + draw.integers(0, 1 << 48, count)).tolist(), total)
            found.append(replace(episodes, read=_reads(memory, episodes, births[first : first + count])))
        names = ("ground", "balls", "agent", "heading", "action", "pose", "read")
        return cls(Episodes(*(np.concatenate([getattr(e, name) for e in found]) for name in names)))

    def batch(self, recipe: Recipe, seed: int, step: int) -> Sequences:
        """The batch of a training step. Raises `ValueError` for sequences of a length that is not in `LENGTHS`."""
        draw = np.random.Generator(np.random.Philox(key=[seed, step]))
        if recipe.frames not in LENGTHS:
            raise ValueError(f"no walk was kept for sequences of {recipe.frames} frames; take one of {LENGTHS}")
        first, every = LENGTHS.index(recipe.frames), len(LENGTHS)
        worlds = first + every * draw.integers(0, (len(self.episodes.pose) - first + every - 1) // every, recipe.batch)
        starts = draw.integers(0, self.episodes.pose.shape[1] - EPISODE + 1, recipe.batch)
        return noised(draw, recipe, self.episodes.cut(worlds, starts, EPISODE))


def _reads(memory: GroundMemory, episodes: Episodes, births: Ints) -> np.ndarray:
    """What every frame reads, `[B, T, N, R]`, where the memory of world b is empty before frame `births[b]`."""
    count, total = episodes.pose.shape[:2]
    state = memory.empty(count)
    delays = [LENGTHS[world % len(LENGTHS)] - 1 for world in range(count)]
    states: list[Tensor] = []
    reads = []
    for frame in range(total):
        pose = torch.from_numpy(episodes.pose[:, frame])
        keys = memory.keys(pose)
        # The state of each world as it was `delay` frames ago: states[-d] holds frames before frame - d + 1.
        states.append(state)
        states = states[-max(delays) :]
        aged = torch.stack([states[-min(delays[b], len(states))][b] for b in range(count)])
        reads.append(memory.arrange(delta_read(aged, keys), pose).to(torch.float16).numpy())
        x = patchify(torch.from_numpy(episodes.render(slice(frame, frame + 1))[:, 0]))
        _, v, beta = memory.writes(x, pose)
        beta = beta * torch.from_numpy(births <= frame)[:, None, None]
        state = delta_write(state, keys, v, beta)
    return np.stack(reads, axis=1)
