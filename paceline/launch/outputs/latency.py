"""`latency.png`: how evenly frames came, and how long after their action."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from paceline.launch.outputs.style import DPI, GRID, INK, PAPER, QUIET, RC, caption, session_colour
from paceline.runtime.result import FrameTime, RunResult
from paceline.runtime.spec import RunSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["write_latency"]

Floats = npt.NDArray[np.float64]
_SHOWN_SESSIONS = 6
_BINS = 60
_SHARES, _SHARE_TOP = (0.0, 0.25, 0.5, 0.75, 1.0), 1.04
_DOTTED = (0, (1, 1.2))
_LATE: dict[str, Any] = {"s": 16, "facecolor": PAPER, "linewidth": 1.1, "zorder": 3}


def write_latency(path: Path, spec: RunSpec, result: RunResult) -> None:
    """Draw the distributions of action-to-frame latency and of the intervals between frames, and both over time."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    times: dict[int, list[FrameTime]] = {}
    for time in sorted(result.times, key=lambda time: (time.session, time.frame)):
        times.setdefault(time.session, []).append(time)
    latency = {s: np.array([1e3 * (t.shown_s - t.emitted_s) for t in of]) for s, of in times.items()}
    interval = {s: np.diff(1e3 * np.array([t.shown_s for t in of])) for s, of in times.items()}
    deadline = spec.topology.deadline_ms
    with mpl.rc_context(RC):
        figure = Figure(figsize=(12, 7.4), facecolor=PAPER)
        grid = figure.add_gridspec(
            2, 2, left=0.065, right=0.945, top=0.82, bottom=0.085, hspace=0.38, wspace=0.26, height_ratios=(1.1, 1)
        )
        _spread(figure.add_subplot(grid[0, 0]), "From action to frame", latency, None)
        _spread(figure.add_subplot(grid[0, 1]), "From frame to frame", interval, deadline)
        _course(figure.add_subplot(grid[1, :]), times, latency, interval, deadline)
        figure.text(0.02, 0.972, "Latency and cadence", fontsize=15, weight="bold", va="top")
        subtitle = "  ·  ".join([caption(spec), *_deadline_met(result.times, deadline)])
        figure.text(0.02, 0.924, subtitle, fontsize=9.5, color=QUIET, va="top")
        figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})


def _deadline_met(times: Sequence[FrameTime], deadline: float | None) -> list[str]:
    due = [time for time in times if not math.isnan(time.due_s)]
    if deadline is None or not due:
        return []
    met = sum(time.shown_s <= time.due_s for time in due)
    return [f"deadline {deadline:g} ms met by {met} of {len(due)} frames ({100 * met / len(due):.1f} %)"]


def _spread(axes: Axes, title: str, values: Mapping[int, Floats], deadline: float | None) -> None:
    """A histogram over all sessions, and the share of frames below each value."""
    from matplotlib.ticker import MaxNLocator

    everything = np.concatenate([*values.values(), np.zeros(0)])
    axes.set_title(title, loc="left", fontsize=11, weight="bold", pad=22)
    axes.set_xlabel("milliseconds", labelpad=2)
    axes.set_ylabel("frames")
    if not everything.size:
        axes.text(0.5, 0.5, "too few frames", transform=axes.transAxes, ha="center", color=QUIET)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    p50, p99 = np.percentile(everything, (50, 99))
    low, top = _limits(everything, deadline)
    inside = everything[everything <= top]
    bins = int(np.clip(2.5 * np.sqrt(everything.size), 12, _BINS))
    axes.hist(inside, bins=bins, range=(low, top), color="#aec7de", edgecolor=PAPER, linewidth=0.5, zorder=2)
    axes.set_xlim(low, top)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    share = axes.twinx()
    share.spines["right"].set_visible(True)
    share.set_ylim(0, _SHARE_TOP)
    share.set_yticks(_SHARES, [f"{100 * s:.0f} %" for s in _SHARES])
    for line in _SHARES[1:]:  # below the bars, and that is the other axes
        axes.plot((0, 1), (line / _SHARE_TOP,) * 2, transform=axes.transAxes, color=GRID, linewidth=0.6, zorder=0)
    for session in sorted(values)[:_SHOWN_SESSIONS]:
        ordered = np.sort(values[session])
        if ordered.size:
            shares = np.arange(1, ordered.size + 1) / ordered.size
            x, y = np.r_[low, ordered, max(top, ordered[-1])], np.r_[0, shares, 1]
            share.step(x, y, where="post", color=session_colour(session), linewidth=1.5)
    notes = [f"p50 {p50:.1f} ms", f"p99 {p99:.1f} ms"]
    if inside.size < everything.size:
        notes.append(f"{everything.size - inside.size} beyond the axis, up to {everything.max():.0f} ms")
    if deadline is not None:
        share.axvline(deadline, color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
        notes.append(f"deadline {deadline:g} ms (dashed)")
    axes.text(0, 1.035, "  ·  ".join(notes), transform=axes.transAxes, va="bottom", fontsize=8.5, color=QUIET)


def _limits(values: Floats, deadline: float | None) -> tuple[float, float]:
    """Where the axis begins and ends: a straggler must not squeeze all others into one bar."""
    p1, p50, p99 = (float(p) for p in np.percentile(values, (1, 50, 99)))
    room = max(0.15 * (p99 - p1), 0.02 * p50)
    low, top = min(float(values.min()), p50) - room, p99 + 4 * room
    top = float(values.max()) + room if values.max() <= top else top
    if deadline is not None:
        low, top = min(low, deadline - room), max(top, deadline + room)
    low = max(0.0, low)
    return low, max(top, low + 1e-3)


def _course(
    axes: Axes,
    times: Mapping[int, Sequence[FrameTime]],
    latency: Mapping[int, Floats],
    interval: Mapping[int, Floats],
    deadline: float | None,
) -> None:
    """Both by frame, with late frames marked."""
    from matplotlib.ticker import MaxNLocator

    shown = sorted(times)[:_SHOWN_SESSIONS]
    top = deadline or 0.0
    some_late = False
    for session in shown:
        frames = np.array([time.frame for time in times[session]])
        colour = session_colour(session)
        alone = "o" if len(frames) == 1 else ""
        axes.plot(frames, latency[session], color=colour, linewidth=1.4, marker=alone)
        axes.plot(frames[1:], interval[session], color=colour, linewidth=1.1, linestyle=_DOTTED)
        late = np.array([time.shown_s > time.due_s for time in times[session]])  # never later than NaN
        axes.scatter(frames[late], latency[session][late], **_LATE, edgecolor=colour)
        some_late = some_late or bool(late.any())
        pool = np.concatenate([latency[session], interval[session]])
        top = max(top, float(np.percentile(pool, 99.5)))
    if deadline is not None:
        axes.axhline(deadline, color=INK, linewidth=1.0, linestyle=(0, (4, 2)), zorder=1)
    axes.set_title("Frame by frame", loc="left", fontsize=11, weight="bold", pad=10)
    axes.set_xlabel("frame", labelpad=2)
    axes.set_ylabel("milliseconds")
    axes.set_ylim(0, 1.15 * top if top > 0 else 1)
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, steps=[1, 2, 5, 10]))
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    _legend(axes, shown, len(times), some_late, deadline is not None)


def _legend(axes: Axes, shown: Sequence[int], sessions: int, late: bool, deadline: bool) -> None:
    from matplotlib.lines import Line2D

    line = session_colour(0) if sessions == 1 else INK
    handles = [
        Line2D([], [], color=line, linewidth=1.4, label="action to frame"),
        Line2D([], [], color=line, linewidth=1.1, linestyle=_DOTTED, label="frame to frame"),
    ]
    if late:
        mark = Line2D([], [], linestyle="", marker="o", markersize=4, markerfacecolor=PAPER, color=line, label="late")
        handles.append(mark)
    if deadline:
        handles.append(Line2D([], [], color=INK, linewidth=1.0, linestyle=(0, (4, 2)), label="deadline"))
    if sessions > 1:
        handles += [Line2D([], [], color=session_colour(s), linewidth=3, label=f"session {s}") for s in shown]
    if sessions > len(shown):
        handles.append(Line2D([], [], linestyle="", label=f"and {sessions - len(shown)} more, not shown"))
    axes.legend(
        handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(handles), fontsize=8, borderaxespad=0.2,
        columnspacing=1.4, handlelength=1.8,
    )  # fmt: skip
