"""`gantt.png`: which group worked on which frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paceline.launch.outputs.lanes import MANY_RANKS, Bar, Lane, bars, lanes
from paceline.launch.outputs.style import (
    DPI,
    FRAME_COLOURS,
    INK,
    PAPER,
    QUIET,
    RC,
    caption,
    frame_colour,
    pass_label,
    position_name,
    session_colour,
)
from paceline.launch.outputs.timeline import WAIT, Pass, Steady, passes, steady
from paceline.pipeline.stage import StageKind
from paceline.runtime.result import Result
from paceline.runtime.spec import GenerateSpec, RunSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


__all__ = ["write_gantt"]

_PERIODS = (12, 8)
"""Most and fewest periods shown: fewer where labels would not fit."""
_WIDTH = 14.0  # inches
_LEFT, _RIGHT = 1.75, 0.85  # inches beside the lanes: names, busy shares
_HEAD, _BETWEEN, _FOOT = 0.95, 0.62, 0.85  # inches above, between the two plots, below
_OVERVIEW_BINS = 1600
_LABEL_SIZES = (7.5, 6.2, 5.2)
_PALE = 0.35
_MANY_PASSES, _ZOOMED_PASSES = 240, 60
"""Where nothing is periodic, as in a generation: above so many passes the middle ones are shown, few enough to read"""
_LABEL_INCH = 0.3  # what a label of the larger size takes


def write_gantt(path: Path, spec: RunSpec | GenerateSpec, result: Result[Any], summary: Mapping[str, Any]) -> None:
    """Draw about ten periods of the steady state of an `aligned` result, and the whole run below."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    items = passes(event for report in result.ranks for event in report.events)
    rows = lanes(spec.topology, result.ranks, items)
    region = steady(result)
    start, end = _zoom(region, items)
    depth = max((lane.top + lane.height for lane in rows), default=1.0)
    ranks = len({lane.rank for lane in rows})
    inch = 0.42 if ranks <= MANY_RANKS else max(0.022, min(0.42, 6.0 / depth))
    zoom_h = max(0.5, depth * inch)
    whole_h = max(0.35, min(1.4, 0.2 * ranks))
    height = _HEAD + zoom_h + _BETWEEN + whole_h + _FOOT
    with mpl.rc_context(RC):
        figure = Figure(figsize=(_WIDTH, height), facecolor=PAPER)
        across = _WIDTH - _LEFT - _RIGHT
        zoom = figure.add_axes((_LEFT / _WIDTH, 1 - (_HEAD + zoom_h) / height, across / _WIDTH, zoom_h / height))
        whole = figure.add_axes((_LEFT / _WIDTH, _FOOT / height, across / _WIDTH, whole_h / height))
        found = bars(items, rows, start, end, gap_s=max(1e-5, (end - start) * 2e-4))
        sessions = sorted({item.session for item in items})
        _draw_waits(zoom, result, rows, start, end)
        _draw_bars(zoom, found, spec, across / (end - start), inch, len(sessions))
        _frame_lanes(zoom, result, rows, region, depth)
        zoom.set_xlim(1e3 * start, 1e3 * end)
        zoom.set_ylim(depth, 0)
        zoom.set_xlabel("milliseconds since the start", labelpad=2)
        _draw_overview(whole, items, sorted({lane.rank for lane in rows}), (start, end))
        _titles(figure, spec, result, summary, region, height)
        few = ranks <= MANY_RANKS
        pieces = few and any(bar.is_piece for bar in found)
        _legend(figure, spec, sessions if few else [], pieces, height)
        figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})


def _zoom(region: Steady | None, items: Sequence[Pass]) -> tuple[float, float]:
    if not items:
        return 0.0, 1e-3
    first, last = min(item.start_s for item in items), max(item.end_s for item in items)
    if region is None:
        if len(items) > _MANY_PASSES:
            middle = items[(len(items) - _ZOOMED_PASSES) // 2 :][:_ZOOMED_PASSES]
            first, last = middle[0].start_s, max(item.end_s for item in middle)
        return first, max(last, first + 1e-6)
    widths = sorted(i.end_s - i.start_s for i in items if i.step >= 0 and region.start_s < i.start_s < region.end_s)
    width = widths[len(widths) // 2] if widths else 0.0
    periods = width * (_WIDTH - _LEFT - _RIGHT) / (_LABEL_INCH * region.period_s)
    span = min(min(max(periods, _PERIODS[1]), _PERIODS[0]) * region.period_s, last - first)
    # From where frames are steady; a short run has less than ten periods there, then around its middle.
    start = region.start_s
    if start + span > region.end_s:
        start = (region.start_s + region.end_s - span) / 2
    start = min(max(start, first), last - span)
    return start, max(start + span, start + 1e-6)


def _draw_waits(axes: Axes, result: Result[Any], rows: Sequence[Lane], start: float, end: float) -> None:
    from matplotlib.collections import PolyCollection

    bands = _bands(rows)
    boxes = [
        _box(max(event.start_s, start), min(event.end_s, end), *bands[event.rank])
        for report in result.ranks
        for event in report.events
        if event.kind == WAIT and event.rank in bands and event.end_s > start and event.start_s < end
    ]
    few = len(bands) <= MANY_RANKS
    style: dict[str, Any] = {"facecolor": "#f3f4f6", "edgecolor": "#d4d8dd" if few else "none", "linewidth": 0.0}
    axes.add_collection(PolyCollection(boxes, hatch="////" if few else None, zorder=1, **style))


def _draw_bars(
    axes: Axes,
    found: Sequence[Bar],
    spec: RunSpec | GenerateSpec,
    inch_per_s: float,
    inch_per_lane: float,
    sessions: int,
) -> None:
    from matplotlib.collections import PolyCollection

    few = inch_per_lane > 0.2
    striped = few and sessions > 1
    places: dict[Bar, float] = {}
    boxes, colours, stripes, stripe_colours = [], [], [], []
    hulls: dict[int, list[tuple[float, float]]] = {}
    hull_colours: dict[int, str] = {}
    for bar in found:
        margin = 0.06 if few else 0.0
        inner = bar.lane.height * (1 - 2 * margin) / bar.rows
        top = bar.lane.top + bar.lane.height * margin + bar.row * inner
        boxes.append(_box(bar.start_s, bar.end_s, top, top + inner * (0.96 if bar.rows > 1 else 1)))
        colours.append(frame_colour(bar.item.frame))
        if few and bar.is_piece:
            hulls[id(bar.item)] = _box(bar.item.start_s, bar.item.end_s, top, top + inner)
            hull_colours[id(bar.item)] = colours[-1]
        if striped:
            stripes.append(_box(bar.start_s, bar.end_s, top + inner * 0.8, top + inner))
            stripe_colours.append(session_colour(bar.item.session))
        if few and inner * inch_per_lane > 0.15:
            places[bar] = top + inner * (0.42 if striped else 0.5)
    _draw_labels(axes, places, spec.topology.last_level, inch_per_s)
    line = {"edgecolors": PAPER, "linewidths": 0.5} if few else {"linewidths": 0.0}
    # What a pass spans is tinted, so that its pieces, layer by layer as KV comes in, read as one.
    pale: dict[str, Any] = {"alpha": _PALE, "linewidths": 0.0, "zorder": 1.5}
    axes.add_collection(PolyCollection(list(hulls.values()), facecolors=list(hull_colours.values()), **pale))
    axes.add_collection(PolyCollection(boxes, facecolors=colours, zorder=2, **line))
    axes.add_collection(PolyCollection(stripes, facecolors=stripe_colours, zorder=3, **line))


def _draw_labels(axes: Axes, places: Mapping[Bar, float], last_level: int, inch_per_s: float) -> None:
    """Write each pass's label once: on its longest bar, or, where that is too short, over the whole pass."""
    by_pass: dict[int, list[Bar]] = {}
    for bar in places:
        by_pass.setdefault(id(bar.item), []).append(bar)
    for of_pass in by_pass.values():
        longest = max(of_pass, key=lambda bar: bar.end_s - bar.start_s)
        item = longest.item
        label = pass_label(item.frame, item.step, last_level)
        for size, (start, end) in product(_LABEL_SIZES, ((longest.start_s, longest.end_s), (item.start_s, item.end_s))):
            if (end - start) * inch_per_s >= 0.0078 * size * len(label) + 0.02:
                middle = 1e3 * (start + end) / 2
                axes.text(
                    middle, places[longest], label, ha="center", va="center", fontsize=size, clip_on=True, zorder=4
                )
                break


def _frame_lanes(axes: Axes, result: Result[Any], rows: Sequence[Lane], region: Steady | None, depth: float) -> None:
    bands = _bands(rows)
    reports = {report.rank: report for report in result.ranks}
    few = len(bands) <= MANY_RANKS
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    beside = axes.get_yaxis_transform()
    step = 1 if few else 2 ** max(0, int(np.ceil(np.log2(len(bands) / 16))))
    for rank, (top, bottom) in bands.items():
        report = reports.get(rank)
        middle = (top + bottom) / 2
        if few:
            # Gaps between ranks are white, so that waits and bars of one rank read as one band.
            axes.axhspan(top, bottom, facecolor="#fafbfc", edgecolor="none", zorder=0)
            where = f"{report.group} ({report.device})" if report is not None else ""
            up, down = (-0.16, 0.16) if bottom - top > 0.5 else (0.0, 0.0)
            axes.text(-0.083, middle + up, f"rank {rank}", transform=beside, ha="right", va="center", weight="bold")
            if down:
                axes.text(
                    -0.083, middle + down, where, transform=beside, ha="right", va="center", fontsize=7.5, color=QUIET
                )
        elif rank % step == 0:
            axes.text(-0.008, middle, f"rank {rank}", transform=beside, ha="right", va="center", fontsize=7.5)
        if region is not None and (few or rank % step == 0):
            share = f"{100 * region.busy.get(rank, 0.0):.0f} %"
            axes.text(1.006, middle, share, transform=beside, ha="left", va="center", fontsize=8, color=INK)
    if few:
        for lane in rows:
            middle = lane.top + lane.height / 2
            size = 7.5 if lane.height > 0.5 else 6
            axes.text(-0.006, middle, lane.stage, transform=beside, ha="right", va="center", fontsize=size, color=QUIET)
    if region is not None:
        axes.text(
            1.006, -0.12 if few else -depth / 50, "busy", transform=beside, fontsize=7.5, color=QUIET, va="bottom"
        )


def _draw_overview(axes: Axes, items: Sequence[Pass], ranks: Sequence[int], zoom: tuple[float, float]) -> None:
    first = min((item.start_s for item in items), default=0.0)
    last = max((item.end_s for item in items), default=1e-3)
    last = max(last, first + 1e-6)
    row_of = {rank: row for row, rank in enumerate(ranks)}
    palette = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in FRAME_COLOURS], np.uint8)
    picture = np.full((max(len(ranks), 1), _OVERVIEW_BINS, 3), 0xF3, np.uint8)
    scale = _OVERVIEW_BINS / (last - first)
    for item in items:
        for unit in item.units:
            a = int((unit.start_s - first) * scale)
            # Something that took less than half a bin leaves the bin to what took more.
            b = round((unit.end_s - first) * scale)
            picture[row_of[item.rank], a : max(b, a)] = palette[item.frame % len(palette)]
    axes.imshow(
        picture, aspect="auto", interpolation="nearest", extent=(1e3 * first, 1e3 * last, len(ranks), 0), zorder=1
    )
    if 1 < len(ranks) <= MANY_RANKS:
        axes.hlines(range(1, len(ranks)), 1e3 * first, 1e3 * last, colors=PAPER, linewidths=1.5, zorder=2)
    axes.axvspan(1e3 * zoom[0], 1e3 * zoom[1], facecolor="none", edgecolor=INK, linewidth=1.2, zorder=3)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.text(-0.006, 0.5, "whole run", transform=axes.transAxes, ha="right", va="center", weight="bold")
    axes.set_xlabel("milliseconds since the start; the box marks what is shown above", labelpad=2)


def _titles(
    figure: Figure,
    spec: RunSpec | GenerateSpec,
    result: Result[Any],
    summary: Mapping[str, Any],
    region: Steady | None,
    height: float,
) -> None:
    x = 0.25 / _WIDTH
    figure.text(
        x, 1 - 0.16 / height, f"Which group worked on which {position_name(spec)}", fontsize=15, weight="bold", va="top"
    )
    parts = [caption(spec)]
    period = summary.get("period_ms")
    if not isinstance(period, int | float):
        period = 1e3 * region.period_s if region is not None else None
    if period is not None:
        parts.append(f"period {period:.1f} ms{' a session' if len(result.sessions) > 1 else ''}")
    if region is not None and region.working:
        over = "the rank" if len(region.working) == 1 else f"the {len(region.working)} ranks"
        kind = "denoise" if spec.topology.compute_kind is StageKind.denoise else "work"
        verb = f"{kind}s" if len(region.working) == 1 else kind
        parts.append(f"bubble {100 * region.bubble:.0f} % of {over} that {verb}, in the steady state")
    figure.text(x, 1 - 0.5 / height, "  ·  ".join(parts), fontsize=9.5, color=QUIET, va="top")


def _legend(figure: Figure, spec: RunSpec | GenerateSpec, sessions: Sequence[int], pieces: bool, height: float) -> None:
    from matplotlib.patches import Patch

    steps = spec.topology.compute_kind is StageKind.denoise
    text = "T·s is step s of frame T, T·c its clean pass" if steps else f"The number is the {position_name(spec)}"
    handles = [Patch(facecolor=frame_colour(0), alpha=_PALE, linewidth=0, label="pass waits inside")] if pieces else []
    handles += [Patch(facecolor="#f3f4f6", edgecolor="#c4c9cf", hatch="////", linewidth=0, label="idle")]
    if len(sessions) > 1:
        handles += [Patch(facecolor=session_colour(s), label=f"session {s}") for s in sessions[:6]]
    figure.legend(
        handles=handles, loc="lower right", ncols=len(handles), fontsize=8, handlelength=1.6, handleheight=0.9,
        bbox_to_anchor=(1 - _RIGHT / _WIDTH, 0.1 / height), borderaxespad=0, columnspacing=1.4,
    )  # fmt: skip
    x, y = _LEFT / _WIDTH, 0.18 / height
    figure.text(x, y, f"Colour goes by {position_name(spec)}, cyclic.  {text}.", fontsize=8, color=QUIET)


def _bands(rows: Sequence[Lane]) -> dict[int, tuple[float, float]]:
    bands: dict[int, tuple[float, float]] = {}
    for lane in rows:
        top, bottom = bands.get(lane.rank, (lane.top, lane.top))
        bands[lane.rank] = min(top, lane.top), max(bottom, lane.top + lane.height)
    return bands


def _box(start_s: float, end_s: float, top: float, bottom: float) -> list[tuple[float, float]]:
    a, b = 1e3 * start_s, 1e3 * end_s
    return [(a, top), (b, top), (b, bottom), (a, bottom)]
