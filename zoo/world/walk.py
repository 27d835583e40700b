"""A walk that leaves a place and comes back, as two runs show it: `python -m zoo.world.walk --memory OUT --without OUT
--picture FILE`.

Both runs are of `paceline run --out` with one seed, so both walks are the same. The picture has a row for each run: the
place before it was left, the way, and the place after the return. With `--search N` it says which of the seeds 0 to
N - 1 has the clearest return, and needs no run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paceline.kernels.philox import session_seed
from zoo.world.environment import TILES, Bytes, Ints, glyphs_in_view
from zoo.world.evaluate import nearest_glyphs
from zoo.world.rollout import Record, record

__all__ = ["Return", "Tile", "find_return", "main", "tiles_of", "walk_of"]

PROMPT = 4
"""Frames before the first one that a run shows"""


@dataclass(frozen=True, slots=True)
class Return:
    """A frame at a place, a later one at the same place, and how many tiles both show that were out of view for a while
    between: all of `away` frames."""

    before: int
    after: int
    tiles: int
    away: int


def walk_of(seed: int, frames: int) -> Record:
    """The walk of session 0 of a run of so many frames, and the true frames, without the prompt."""
    whole = record([session_seed(seed, 0)], frames + PROMPT)
    names = Record.__dataclass_fields__
    return Record(*(getattr(whole, name)[PROMPT:] for name in names))


def _in_view(pose: Ints) -> np.ndarray:
    """Which tiles of the world each frame shows whole, `[T, TILES, TILES]`."""
    place, _, inside = glyphs_in_view(pose)
    seen = np.zeros((len(pose), TILES, TILES), np.bool_)
    frame = np.broadcast_to(np.arange(len(pose))[:, None, None], inside.shape)
    seen[frame[inside], place[inside][:, 0], place[inside][:, 1]] = True
    return seen


def find_return(pose: Ints, away: int = 17, later: int = 12) -> Return | None:
    """Of a walk with poses `[T, 2]` the return that shows most tiles again, none of which was in view in any of the
    `away` frames before it; None where there is none. The first frame is at least `later` frames after the start, so
    that the model has drawn the place itself."""
    seen = _in_view(pose)
    best: Return | None = None
    for after in range(later + away + 1, len(pose)):
        lost = seen[after] & ~seen[after - away : after].any(axis=0)
        if not lost.any():
            continue
        counts = (seen[later : after - away] & lost).sum(axis=(1, 2))
        before = later + int(len(counts) - 1 - counts[::-1].argmax())
        if counts.max() > (0 if best is None else best.tiles):
            best = Return(before, after, int(counts.max()), away)
    return best


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile that both frames of a return show, and that nothing covers."""

    before: tuple[int, int]
    """Its first pixel in the earlier frame"""
    after: tuple[int, int]
    same: bool
    """Whether it looks the same"""


def tiles_of(frames: Bytes, pose: Ints, found: Return) -> list[Tile]:
    """The tiles that a return shows again, which were out of view between."""
    both = [found.before, found.after]
    glyph, place, clear, _ = nearest_glyphs(frames[both], pose[both])
    _, pixel, _ = glyphs_in_view(pose[both])
    seen = _in_view(pose)
    lost = seen[found.before] & seen[found.after] & ~seen[found.after - found.away : found.after].any(axis=0)
    first, second = (
        {tuple(place[k, i, j]): (int(glyph[k, i, j]), tuple(pixel[k, i, j].tolist())) for i, j in np.argwhere(clear[k])}
        for k in range(2)
    )
    shared = [at for at in first if at in second and lost[at]]
    return [Tile(first[at][1], second[at][1], first[at][0] == second[at][0]) for at in shared]


def _read(folder: Path) -> tuple[int, Bytes]:
    """Seed and frames of a run."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    frames: Bytes = np.load(folder / "session-0.npy")
    return int(summary["seed"]), frames


def _draw(path: Path, rows: Sequence[tuple[str, Bytes, Sequence[Tile]]], found: Return) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    columns = np.linspace(found.before, found.after, 6).round().astype(int).tolist()
    figure, axes = plt.subplots(
        len(rows), len(columns), figsize=(2.3 * len(columns), 2.6 * len(rows)), constrained_layout=True
    )
    for (name, frames, tiles), line in zip(rows, axes, strict=True):
        for axis, frame in zip(line, columns, strict=True):
            axis.imshow(frames[frame], interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            when = {found.before: "before", found.after: "after"}.get(frame, "away")
            axis.set_title(f"{when}, frame {frame}", fontsize=9)
        for tile in tiles:
            for axis, (y, x) in ((line[0], tile.before), (line[-1], tile.after)):
                colour = "white" if tile.same else "red"
                axis.add_patch(Rectangle((x - 0.5, y - 0.5), 4, 4, fill=False, edgecolor=colour, linewidth=2))
        same = sum(tile.same for tile in tiles)
        line[0].set_ylabel(f"{name}: {same} of {len(tiles)} the same", fontsize=10)
    figure.suptitle("Tiles that were out of view for a while, when the walk comes back; red: they look different")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _search(seeds: int, frames: int) -> None:
    scored = [(find_return(walk_of(seed, frames).pose[:, 0]), seed) for seed in range(seeds)]
    for found, seed in sorted(((f, s) for f, s in scored if f), key=lambda each: -each[0].tiles)[:8]:
        print(f"seed {seed}: frame {found.after} shows {found.tiles} tiles of frame {found.before} again")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m zoo.world.walk", description="Draw a return to a place.")
    parser.add_argument("--memory", type=Path, help="--out of a run with a context memory")
    parser.add_argument("--without", type=Path, help="--out of a run without, with the same seed")
    parser.add_argument("--picture", type=Path, help="where the picture goes")
    parser.add_argument("--search", type=int, metavar="N", help="look for a seed with a clear return instead")
    parser.add_argument("--frames", type=int, default=100, help="of the walks that are searched")
    args = parser.parse_args(argv)
    if args.search is not None:
        _search(args.search, args.frames)
        return
    if args.memory is None or args.without is None or args.picture is None:
        parser.error("give --memory, --without and --picture, or --search")
    try:
        (seed, kept), (other, plain) = _read(args.memory), _read(args.without)
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"{error}; give the --out folders of two runs of `paceline run`")
    if seed != other or len(kept) != len(plain):
        parser.error("the two runs differ in seed or frames, so their walks do; repeat one with the other's")
    walk = walk_of(seed, len(kept))
    found = find_return(walk.pose[:, 0])
    if found is None:
        sys.exit("the walk comes back to no place that was out of view for 17 frames; take another seed (--search)")
    rows = [
        (name, frames, tiles_of(frames, walk.pose[:, 0], found))
        for name, frames in (("with memory", kept), ("without", plain))
    ]
    for name, _, tiles in rows:
        same = sum(tile.same for tile in tiles)
        print(f"{name}: {same} of {len(tiles)} tiles look as they did, after {found.away} or more frames out of view")
    _draw(args.picture, rows, found)
    print(args.picture)


if __name__ == "__main__":
    main()
