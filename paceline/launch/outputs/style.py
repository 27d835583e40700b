"""How the pictures look: colours that colour-blind readers tell apart, fonts, and how things are named in them."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from paceline.pipeline.topology import Schedule
from paceline.runtime.spec import GenerateSpec, RunSpec

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont


__all__ = [
    "DPI", "FRAME_COLOURS", "GRID", "INK", "PAPER", "QUIET", "RC", "SESSION_COLOURS", "caption", "font", "frame_colour",
    "pass_label", "position_name", "session_colour", "session_letter",
]  # fmt: skip

INK, QUIET, GRID, PAPER = "#1f2328", "#6a737d", "#dfe3e8", "#ffffff"
DPI = 144

# Paul Tol's `light` scheme: black text is legible on all of them. Ordered so that neighbours differ most.
FRAME_COLOURS = ("#77aadd", "#ee8866", "#44bb99", "#eedd88", "#99ddff", "#ffaabb", "#bbcc33")
"""Cyclic: frame T has colour T mod 7."""

# Okabe and Ito's scheme without black and yellow (pale lines vanish on paper).
SESSION_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Cyclic: session K has colour K mod 6."""

RC: dict[Any, Any] = {  # newer matplotlib types the keys as literals
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
}
"""Matplotlib settings of all plots."""


def frame_colour(frame: int) -> str:
    """The colour of a frame's bars."""
    return FRAME_COLOURS[frame % len(FRAME_COLOURS)]


def session_colour(session: int) -> str:
    """The colour of a session's lines."""
    return SESSION_COLOURS[session % len(SESSION_COLOURS)]


def session_letter(session: int) -> str:
    """`A`, `B`, ..., `Z`, `AA`, ... for sessions 0, 1, ...: Perfetto colours slices by their names without digits."""
    letters = ""
    session += 1
    while session > 0:
        session, rest = divmod(session - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters


def pass_label(frame: int, step: int, last_level: int) -> str:
    """`T·s`; the clean pass is `T·c`, and what is no pass is just `T`."""
    if frame < 0:
        return "prompt"
    if step < 0:
        return str(frame)
    return f"{frame}·{'c' if step >= last_level else step}"


def position_name(spec: RunSpec | GenerateSpec) -> str:
    """What positions of a session are called."""
    return "frame" if isinstance(spec, RunSpec) else "position"


def caption(spec: RunSpec | GenerateSpec) -> str:
    """One line that says what was run: topology, mode, schedule, steps, seed."""
    parts = [spec.topology.name]
    if isinstance(spec, RunSpec):
        topology, steps = spec.topology, spec.topology.steps
        if topology.reads_context:
            parts += [f"context {topology.context.mode.value}", f"{steps} step{'s' if steps > 1 else ''}"]
        schedule = Schedule.serial if spec.serial else topology.schedule
        parts.append(f"schedule {schedule.value}")
    else:
        parts.append(f"coupling {spec.topology.speculation.coupling}")
    parts.append(f"seed {spec.seed}")
    return "  ·  ".join(parts)


@cache
def font(size: int, bold: bool = False) -> FreeTypeFont:
    """The font of all pictures, as matplotlib ships it, so that they look the same on every machine."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans{'-Bold' if bold else ''}.ttf", size)
