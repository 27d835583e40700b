"""`tiers-GROUP-RANK.png`: in which tier each block lay, over time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paceline.launch.outputs.style import DPI, INK, PAPER, QUIET, RC
from paceline.stages.lm.tier_history import TierHistory

__all__ = ["TIER_COLOURS", "tier_image", "write_tier_map"]

# Of Okabe and Ito's scheme: warm where it is near, cool where it is far.
TIER_COLOURS = ("#d55e00", "#e69f00", "#56b4e9")
"""hbm, dram, nvme."""
_NAMES = ("hbm", "dram", "nvme")
_WIDTH = 10.0  # inches
_HEAD, _BETWEEN, _FOOT = 0.75, 0.5, 0.75  # inches above, between the plots, below
_LEFT, _RIGHT = 0.9, 0.2
_MOST_ROWS = 1200
"""Blocks of a layer that are drawn; of more, every so many-th."""


def tier_image(history: TierHistory, layer: int) -> tuple[NDArray[np.uint8], list[tuple[int, int]]]:
    """One of a history's layers, by its index, as `[rows, looks]`: 0 for no block, else 1 + tier. Rows are in the order
    of session and position, which are given too."""
    keys = [(row[0], row[1]) for row in history.rows]
    image = np.zeros((len(keys), len(history.looks)), dtype=np.uint8)
    for column, look in enumerate(history.looks):
        seen = np.frombuffer(look[layer], dtype=np.uint8)
        image[: len(seen), column] = seen
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return image[order], [keys[row] for row in order]


def write_tier_map(path: Path, history: TierHistory, title: str) -> None:
    """Draw the layers of a history below one another: time to the right, positions of each session downwards."""
    import matplotlib as mpl
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    layers = len(history.layers)
    rows = min(max(len(history.rows), 1), _MOST_ROWS)
    each = min(4.0, max(1.2, rows * 0.02))
    height = _HEAD + layers * each + (layers - 1) * _BETWEEN + _FOOT
    colours = ListedColormap([PAPER, *TIER_COLOURS])
    with mpl.rc_context(RC):
        figure = Figure(figsize=(_WIDTH, height), facecolor=PAPER)
        for index, layer in enumerate(history.layers):
            image, keys = tier_image(history, index)
            every = -(-max(len(keys), 1) // _MOST_ROWS)
            top = _HEAD + index * (each + _BETWEEN)
            axes = figure.add_axes(
                (_LEFT / _WIDTH, 1 - (top + each) / height, 1 - (_LEFT + _RIGHT) / _WIDTH, each / height)
            )
            if image.size:
                first, last = history.steps[0], history.steps[-1]
                axes.imshow(
                    image[::every], cmap=colours, vmin=0, vmax=3, aspect="auto", interpolation="nearest",
                    extent=(first, last + 1, len(image[::every]), 0),
                )  # fmt: skip
                begins = [row for row, key in enumerate(keys) if not row or key[0] != keys[row - 1][0]]
                axes.set_yticks([row / every for row in begins], [f"session {keys[row][0]}" for row in begins])
                for row in begins[1:]:
                    axes.axhline(row / every, color=INK, linewidth=0.5)
            axes.set_title(f"layer {layer}", loc="left", fontsize=8, color=QUIET, pad=3)
        axes.set_xlabel("passes since the start", labelpad=2)
        figure.text(_LEFT / _WIDTH, 1 - 0.25 / height, title, fontsize=11, color=INK, va="center")
        figure.legend(
            handles=[Patch(color=colour, label=name) for colour, name in zip(TIER_COLOURS, _NAMES, strict=True)],
            loc="upper right", ncols=3, fontsize=8,
        )  # fmt: skip
        figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})
