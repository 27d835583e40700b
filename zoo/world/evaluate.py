"""Score a world model on held-out worlds: `python -m zoo.world.evaluate --weights FILE`, or `--topology FILE` for what
a topology serves: its weights, steps, context mode, window, sinks, recall and memory. With `--json` the last line of
stdout is one JSON object.

Every measure compares a rollout with *itself* where the world is free (an unseen tile may be anything) and with the
truth where it is not (true context, the place of the agent). A tile counts where it lies fully in view and neither a
ball nor the agent covers it. See `Scores` for what is measured.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import torch

from paceline.pipeline.load import load_topology
from paceline.pipeline.topology import WorldTopology
from paceline.stages.dit.file import DiTFile
from paceline.stages.dit.network import DiT, load_dit
from paceline.stages.memory import make_memory
from paceline.stages.world_file import world_of
from zoo.world.environment import ATLAS, FULL, PAINT, RING, TILES, Bytes, Ints, glyphs_in_view, occluded_pixels
from zoo.world.rollout import MODES, ContextMode, Control, Past, Record, record, rollout

__all__ = ["LAGS", "NextFrame", "Scores", "memory_score", "nearest_glyphs", "next_frame", "quick_score", "score"]

LAGS = ((1, 1), (2, 4), (5, 8), (9, 16), (17, 64), (65, 256))  # frames that a tile was out of view
HELD_OUT = 7_000  # seeds of held-out worlds begin here; training worlds lie above 2**40


@dataclass(frozen=True, slots=True)
class NextFrame:
    """Prediction from true earlier frames, over tiles that were in view one frame before."""

    psnr: float
    tile_accuracy: float


@dataclass(frozen=True, slots=True)
class Scores:
    """A free rollout.

    persistence: share of tiles, in view in the frame before, that kept their glyph; last: the same over the last
    quarter of the rollout. uncovered: the same for tiles that a ball or the agent had covered meanwhile; painted: share
    of ring tiles that show `full` once the agent who painted them moved on. revisit: share of tiles that came back with
    the glyph they had left with, by frames out of view, and the number of such tiles. crispness: mean absolute pixel
    error (0..255) of new tiles to their nearest glyph. entropy: of the glyphs of new tiles, in bits; the prior has 5.
    agent, pan: share of frames with the agent in its place, and with the picture moved as the view did.
    """

    persistence: float
    last: float
    uncovered: float
    painted: float
    revisit: dict[str, tuple[float, int]]
    crispness: float
    entropy: float
    agent: float
    pan: float


def nearest_glyphs(frames: Bytes, pose: Ints) -> tuple[Ints, Ints, npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Read the tiles of frames `[K, 32, 32, 3]` at poses `[K, 2]`.

    Returns: glyph `[K, 8, 8]`, world tile `[K, 8, 8, 2]`, whether the tile is fully in view and shows no white (a
    ball or the agent) `[K, 8, 8]`, and its mean absolute pixel error to the glyph `[K, 8, 8]`.
    """
    place, pixel, inside = glyphs_in_view(pose)
    start = np.minimum(pixel, 28)
    span = np.arange(4)
    k = np.arange(len(frames))[:, None, None, None, None]
    y = (start[..., 0, None] + span)[..., :, None]
    x = (start[..., 1, None] + span)[..., None, :]
    tiles = frames[k, y, x].astype(np.float32)
    white = np.count_nonzero(tiles.min(axis=-1) > 200, axis=(-1, -2)) >= 2
    flat, atlas = tiles.reshape(-1, 48), ATLAS.reshape(-1, 48).astype(np.float32)
    distance = (flat**2).sum(1)[:, None] - 2 * flat @ atlas.T + (atlas**2).sum(1)
    glyph = distance.argmin(axis=1)
    error = np.abs(flat - atlas[glyph]).mean(axis=1)
    return glyph.reshape(inside.shape), place, inside & ~white, error.reshape(inside.shape).astype(np.float64)


def _covered(truth: Record, frame: int) -> npt.NDArray[np.bool_]:
    """Tiles of a true frame of which a pixel is covered, `[W, 8, 8]`."""
    hidden = occluded_pixels(truth.balls[frame], truth.agent[frame], truth.heading[frame])
    _, pixel, _ = glyphs_in_view(truth.pose[frame])
    start, span = np.minimum(pixel, 28), np.arange(4)
    k = np.arange(len(hidden))[:, None, None, None, None]
    pixels = hidden[k, (start[..., 0, None] + span)[..., :, None], (start[..., 1, None] + span)[..., None, :]]
    return np.asarray(np.count_nonzero(pixels, axis=(-1, -2)) > 0, np.bool_)


def next_frame(model: DiT, truth: Record, steps: int, prompt: int = 4) -> NextFrame:
    """Predict every frame after the prompt from the true frames before it."""
    made = rollout(model, truth, "clean", steps, prompt, forced=True)
    worlds = np.arange(made.shape[1])[:, None, None]
    right = total = 0
    squares: list[float] = []
    seen = np.zeros((made.shape[1], TILES, TILES), np.bool_)
    for frame in range(prompt - 1, len(made)):
        place, pixel, inside = glyphs_in_view(truth.pose[frame])
        at = (worlds, place[..., 0], place[..., 1])
        if frame >= prompt:
            glyph, _, clear, _ = nearest_glyphs(made[frame], truth.pose[frame])
            asked = inside & seen[at] & ~_covered(truth, frame)
            right += int((asked & clear & (glyph == truth.ground[frame][at])).sum())
            total += int(asked.sum())
            w, i, j = np.nonzero(asked)
            y = pixel[w, i, j, 0][:, None, None] + np.arange(4)[:, None]
            x = pixel[w, i, j, 1][:, None, None] + np.arange(4)
            k = w[:, None, None]
            difference = made[frame][k, y, x].astype(np.float64) - truth.frames[frame][k, y, x]
            squares.append(float((difference**2).mean()))
        seen[:] = False
        seen[at] = inside
    error = sum(squares) / len(squares)
    return NextFrame(10 * math.log10(255**2 / max(error, 1e-9)), right / max(1, total))


class _Share:
    """A share that is counted up."""

    def __init__(self) -> None:
        self.right = self.total = 0

    def add(self, right: npt.NDArray[np.bool_], asked: npt.NDArray[np.bool_]) -> None:
        self.right += int((right & asked).sum())
        self.total += int(asked.sum())

    @property
    def value(self) -> float:
        return self.right / self.total if self.total else math.nan


def score(made: Bytes, truth: Record, prompt: int = 4) -> Scores:
    """Score frames `[T, W, 32, 32, 3]` that were rolled out under the actions of `truth`."""
    count, worlds = made.shape[:2]
    shape = (worlds, TILES, TILES)
    glyph_of = np.full(shape, -1)  # as last seen in the rollout, or as painting must have changed it
    in_view, uncovered_at = np.full(shape, -1000), np.full(shape, -1000)  # frame when last in view; when last legible
    painted = np.zeros(shape, np.bool_)
    keep, last, uncover, paint = _Share(), _Share(), _Share(), _Share()
    lags = {f"{low}-{high}" if low != high else str(low): (low, high, _Share()) for low, high in LAGS}
    agent, pan = _Share(), _Share()
    new_error: list[npt.NDArray[np.float64]] = []
    histogram = np.zeros(len(ATLAS))
    k = np.arange(worlds)
    for frame in range(count):
        tile = truth.agent[frame] // 2
        under = glyph_of[k, tile[:, 0], tile[:, 1]]
        paints = (truth.action[frame] == PAINT) & (under >= 0) & (under % 5 == RING)
        glyph_of[k, tile[:, 0], tile[:, 1]] = np.where(paints, under + (FULL - RING), under)
        painted[k[paints], tile[paints, 0], tile[paints, 1]] = True
        glyph, place, clear, error = nearest_glyphs(made[frame], truth.pose[frame])
        _, _, inside = glyphs_in_view(truth.pose[frame])
        legible = clear & ~_covered(truth, frame)
        at = (k[:, None, None], place[..., 0], place[..., 1])
        known = legible & (glyph_of[at] >= 0)
        same, absent = glyph == glyph_of[at], frame - in_view[at] - 1
        if frame >= prompt:
            stays = known & (uncovered_at[at] == frame - 1) & ~painted[at]
            keep.add(same, stays)
            if frame >= prompt + (count - prompt) * 3 // 4:
                last.add(same, stays)
            uncover.add(same, known & (absent == 0) & (uncovered_at[at] < frame - 1) & ~painted[at])
            paint.add(same, known & painted[at])
            for low, high, share in lags.values():
                share.add(same, known & (absent >= low) & (absent <= high) & ~painted[at])
            fresh = legible & (glyph_of[at] < 0)
            new_error.append(error[fresh])
            histogram += np.bincount(glyph[fresh], minlength=len(ATLAS))
            pan.add((same & stays).sum((1, 2)) * 2 > stays.sum((1, 2)), stays.any((1, 2)))
            corner = 2 * ((truth.agent[frame] - truth.pose[frame]) % 48)
            rows, columns = corner[:, 0, None, None] + [[0], [1]], corner[:, 1, None, None] + [[0, 1]]
            sprite = (k[:, None, None], rows, columns)
            off = np.abs(truth.frames[frame][sprite].astype(np.float64) - made[frame][sprite]).mean((1, 2, 3))
            agent.add(off < 48, np.ones(worlds, np.bool_))
        glyph_of[tuple(a[legible] for a in np.broadcast_arrays(*at))] = glyph[legible]
        for array, mask in ((in_view, inside), (uncovered_at, legible)):
            array[tuple(a[mask] for a in np.broadcast_arrays(*at))] = frame
        painted[tuple(a[legible] for a in np.broadcast_arrays(*at))] = False
    p = histogram[histogram > 0] / max(1.0, histogram.sum())
    return Scores(
        persistence=keep.value,
        last=last.value,
        uncovered=uncover.value,
        painted=paint.value,
        revisit={name: (share.value, share.total) for name, (_, _, share) in lags.items()},
        crispness=float(np.concatenate(new_error).mean()),
        entropy=float(-(p * np.log2(p)).sum()),
        agent=agent.value,
        pan=pan.value,
    )


def quick_score(model: DiT, worlds: int = 12, frames: int = 16) -> dict[str, float]:
    """A few numbers for a training log: from true context, and short free rollouts in `clean` and `cascade`."""
    truth = record(list(range(HELD_OUT, HELD_OUT + worlds)), frames)
    out: dict[str, float] = {}
    for steps in (1, 4):
        ahead = next_frame(model, truth, steps)
        out |= {f"next{steps}": ahead.tile_accuracy, f"psnr{steps}": ahead.psnr}
    runs: list[tuple[ContextMode, int]] = [("clean", 2), ("cascade", 2), ("clean", 4), ("cascade", 4)]
    for mode, steps in runs:
        free = score(rollout(model, truth, mode, steps), truth)
        out |= {f"{mode}{steps}": free.persistence, f"crisp_{mode}{steps}": free.crispness}
    return out


def memory_score(model: DiT, worlds: int = 8, frames: int = 72) -> dict[str, float]:
    """A few numbers for the log of a network with a memory: what comes back after it was out of view, at two steps."""
    truth = record(list(range(HELD_OUT, HELD_OUT + worlds)), frames)
    out: dict[str, float] = {}
    modes: list[ContextMode] = ["clean", "cascade"]
    for mode in modes:
        free = score(rollout(model, truth, mode, 2), truth)
        out |= {f"{mode}_kept": free.persistence, f"{mode}_painted": free.painted}
        out |= {f"{mode}_{lag}": free.revisit[lag][0] for lag in ("5-8", "9-16", "17-64")}
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the evaluator."""
    parser = argparse.ArgumentParser(prog="python -m zoo.world.evaluate", description="Score a world model.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--weights", type=Path, default=Path(__file__).parent / "weights.safetensors")
    what.add_argument("--topology", type=Path, default=None, help="score what a topology serves, as it is set there")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the topology")
    parser.add_argument("--worlds", type=int, default=16)
    parser.add_argument("--frames", type=int, default=28, help="frames of a rollout, with the prompt of 4")
    parser.add_argument("--recall", type=int, nargs="+", default=[0], help="older frames that a frame recalls by pose")
    parser.add_argument("--control", choices=get_args(Control), default="none", help="what stands in for the memory")
    parser.add_argument(
        "--seed", type=int, default=HELD_OUT, help="of the first world; training worlds lie from 2^40 on"
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    seeds = list(range(args.seed, args.seed + args.worlds))
    about = {"worlds": args.worlds, "frames": args.frames, "seed": args.seed, "control": args.control}
    if args.topology is not None:
        try:
            topology, model, past = _served(args.topology, args.set, args.control, args.device)
        except (OSError, ValueError) as error:
            parser.error(str(error))
        report = _of_topology(topology, model, past, record(seeds, args.frames))
    else:
        report = _of_weights(load_dit(args.weights, args.device), record(seeds, args.frames), args)
    if args.json:
        print(json.dumps(about | report))


def _served(path: Path, sets: Sequence[str], control: Control, device: str) -> tuple[WorldTopology, DiT, Past]:
    """What a topology serves. Raises `OSError`, and `ValueError` where that is not of the embedded model."""
    topology = load_topology(path, sets)
    if not isinstance(topology, WorldTopology):
        raise ValueError(f"{path} is no topology of a world; only worlds are scored here")
    world, context = world_of(topology.model.weights), topology.context
    if not isinstance(world, DiTFile):
        raise ValueError(f"{world.path} is not of the embedded model, whose worlds are scored here")
    rule = None if context.memory is None else make_memory(context.memory.kind, context.memory.options)
    if rule is None and control != "none":
        raise ValueError(f"{path} has no memory that could be replaced; leave out --control, or set context.memory")
    past = Past(context.window, context.sinks, context.recall, rule, control)
    return topology, load_dit(world.path, device), past


def _of_topology(topology: WorldTopology, model: DiT, past: Past, truth: Record) -> dict[str, object]:
    """Score what a topology serves."""
    mode: ContextMode = topology.context.mode.value
    scores = score(rollout(model, truth, mode, topology.steps, past=past), truth)
    shape = model.config.header.memory
    report: dict[str, object] = {
        "topology": topology.name,
        "mode": mode,
        "steps": topology.steps,
        "kept": scores.persistence,
        "painted": scores.painted,
        "revisit": {lag: share if count else None for lag, (share, count) in scores.revisit.items()},
        "tiles": {lag: count for lag, (_, count) in scores.revisit.items()},
        "state_bytes": 0 if past.rule is None or shape is None else past.rule.state_bytes(shape),
    }
    for name, value in report.items():
        print(f"{name:12} {value}", flush=True)
    return report


def _of_weights(model: DiT, truth: Record, args: argparse.Namespace) -> dict[str, object]:
    """Score a model in several modes, steps and recalls."""
    ahead = {steps: next_frame(model, truth, steps) for steps in args.steps}
    for steps, result in ahead.items():
        print(f"next frame, {steps} steps: {result.psnr:.1f} dB, tiles right {result.tile_accuracy:.4f}", flush=True)
    names = list(Scores.__dataclass_fields__)
    print("  ".join(f"{n:>11}" for n in ["mode", "steps", "recall", *(n for n in names if n != "revisit")]), " revisit")
    table: list[dict[str, object]] = []
    modes: list[ContextMode] = args.modes
    for mode in modes:
        for steps, recall in product(args.steps, args.recall):
            past = Past(recall=recall, control=args.control)
            scores = score(rollout(model, truth, mode, steps, past=past), truth)
            row = asdict(scores)
            back = "  ".join(f"{lag}: {share:.3f} ({n})" for lag, (share, n) in scores.revisit.items())
            numbers = [f"{row[n]:11.3f}" for n in names if n != "revisit"]
            print("  ".join([f"{mode:>11}", f"{steps:>11}", f"{recall:>11}", *numbers]), f" {back}", flush=True)
            table.append({"mode": mode, "steps": steps, "recall": recall, **row})
    return {"next_frame": {steps: asdict(result) for steps, result in ahead.items()}, "rollouts": table}


if __name__ == "__main__":
    main()
