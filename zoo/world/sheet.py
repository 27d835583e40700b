"""A contact sheet: a rollout beside the true world, to look at. `python -m zoo.world.sheet --out PICTURE.png`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from paceline.stages.dit.network import load_dit
from zoo.world.environment import Bytes
from zoo.world.evaluate import HELD_OUT
from zoo.world.rollout import MODES, record, rollout

__all__ = ["contact_sheet", "main"]


def contact_sheet(rows: Sequence[Bytes], columns: int = 14, scale: int = 3, gap: int = 2) -> Image.Image:
    """A picture of sequences of frames `[T, 32, 32, 3]`, compared line by line: a band holds `columns` frames of every
    sequence, one sequence under the other, and bands follow down the page."""
    frames = len(rows[0])
    side = rows[0].shape[1] + gap
    bands = -(-frames // columns)
    page = np.full((bands * (len(rows) * side + 3 * gap), columns * side, 3), 60, np.uint8)
    for band in range(bands):
        for row, sequence in enumerate(rows):
            top = band * (len(rows) * side + 3 * gap) + row * side
            for column, frame in enumerate(sequence[band * columns : (band + 1) * columns]):
                page[top : top + side - gap, column * side : column * side + side - gap] = frame
    return Image.fromarray(page).resize((page.shape[1] * scale, page.shape[0] * scale), Image.Resampling.NEAREST)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: the true world, then a rollout for every mode and number of steps asked for."""
    parser = argparse.ArgumentParser(prog="python -m zoo.world.sheet", description="Draw rollouts beside the truth.")
    parser.add_argument("--weights", type=Path, default=Path(__file__).parent / "weights.safetensors")
    parser.add_argument("--world", type=int, default=0)
    parser.add_argument("--frames", type=int, default=28)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["clean"])
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    model = load_dit(args.weights)
    truth = record([HELD_OUT + args.world], args.frames)
    rows = [truth.frames[:, 0]]
    rows += [rollout(model, truth, mode, steps)[:, 0] for mode in args.modes for steps in args.steps]
    contact_sheet(rows).save(args.out)


if __name__ == "__main__":
    main()
