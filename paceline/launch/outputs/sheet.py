"""`contact-sheet.png`: what each session made, above what the true world shows under the same actions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from paceline.launch.outputs.style import INK, PAPER, QUIET, caption, font, session_colour
from paceline.launch.outputs.video import upscale
from paceline.runtime.spec import RunSpec

__all__ = ["write_sheet"]

Frames = npt.NDArray[np.uint8]

_COLUMNS = 12
_SESSIONS = 8
_TILE = 128
_GAP, _ROW_GAP = 10, 6
_LEFT, _RIGHT, _TOP, _BOTTOM = 132, 28, 92, 28
_HEAD = 34
"""Above each session's pictures: the frame numbers."""


def write_sheet(path: Path, spec: RunSpec, frames: Mapping[int, Frames], truth: Mapping[int, Frames] | None) -> None:
    """Draw every n-th frame of each session, at most 12 of at most 8 sessions; n and what is left out are stated.

    `frames` and `truth` are `[T, H, W, 3]` a session. Raises `ValueError` where there is no frame at all.
    """
    from PIL import Image, ImageDraw

    shown = [session for session in sorted(frames) if len(frames[session])][:_SESSIONS]
    if not shown:
        raise ValueError("a contact sheet needs at least one frame")
    longest = max(len(frames[session]) for session in shown)
    stride = math.ceil(longest / _COLUMNS)
    columns = list(range(0, longest, stride))
    height, width = frames[shown[0]].shape[1:3]
    factor = max(1, round(_TILE / max(height, width)))
    tile_h, tile_w = height * factor, width * factor

    rows = {session: 2 if truth is not None and session in truth else 1 for session in shown}
    block = {session: _HEAD + rows[session] * (tile_h + _ROW_GAP) + 20 for session in shown}
    size = _LEFT + len(columns) * (tile_w + _GAP) - _GAP + _RIGHT, _TOP + sum(block.values()) - 20 + _BOTTOM
    sheet = Image.new("RGB", (max(size[0], 900), size[1]), PAPER)
    draw = ImageDraw.Draw(sheet)

    draw.text((28, 22), "Generated frames" + (" and the true world" if truth else ""), INK, font(24, True))
    every = "every frame" if stride == 1 else f"every {_ordinal(stride)} frame of {longest}"
    left_out = f"  ·  {len(shown)} of {len(frames)} sessions" if len(shown) < len(frames) else ""
    draw.text((28, 56), f"{caption(spec)}  ·  {every}{left_out}", QUIET, font(15))

    top = _TOP
    for session in shown:
        made = frames[session]
        real = truth.get(session) if truth is not None else None
        y = top + _HEAD
        bar = (28, y, 33, y + rows[session] * (tile_h + _ROW_GAP) - _ROW_GAP - 1)
        draw.rectangle(bar, session_colour(session))
        draw.text((28, top + 8), f"session {session}", session_colour(session), font(16, True))
        labels = [("generated", made)] + ([("true world", real)] if real is not None else [])
        for row, (label, pictures) in enumerate(labels):
            row_y = y + row * (tile_h + _ROW_GAP)
            draw.text((44, row_y + tile_h // 2), label, INK, font(14), anchor="lm")
            for column, frame in enumerate(columns):
                if frame < len(pictures):
                    place = _LEFT + column * (tile_w + _GAP), row_y
                    sheet.paste(Image.fromarray(np.ascontiguousarray(upscale(pictures[frame], factor))), place)
        for column, frame in enumerate(columns):
            if frame < len(made):
                centre = _LEFT + column * (tile_w + _GAP) + tile_w // 2
                draw.text((centre, top + 18), str(frame), QUIET, font(14), anchor="mm")
        top += block[session]
    sheet.save(path, format="PNG", optimize=False)


def _ordinal(number: int) -> str:
    teen = 10 <= number % 100 <= 20
    return f"{number}{'th' if teen else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"
