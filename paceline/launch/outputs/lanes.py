"""The Gantt picture's rows and bars, before anything is drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from paceline.launch.outputs.timeline import Pass, runs
from paceline.pipeline.stage import StageKind
from paceline.pipeline.topology import Topology
from paceline.runtime.result import RankReport

__all__ = ["Bar", "Lane", "bars", "lanes"]

MANY_RANKS = 12
"""Above this number of ranks a rank is one lane without stages."""

_HEIGHTS = {StageKind.source: 0.3, StageKind.sink: 0.3, StageKind.decode: 0.6}


@dataclass(frozen=True, slots=True)
class Lane:
    """One row: a stage of a rank, or a whole rank where `stage` is empty. `top` and `height` in rank units."""

    rank: int
    stage: str
    top: float
    height: float


@dataclass(frozen=True, slots=True, eq=False)
class Bar:
    """One stretch of computing, drawn as `row` of `rows` where several overlap in a lane."""

    item: Pass
    lane: Lane
    start_s: float
    end_s: float
    row: int = 0
    rows: int = 1

    @property
    def is_piece(self) -> bool:
        """Whether the pass goes on in other bars."""
        return (self.start_s, self.end_s) != (self.item.start_s, self.item.end_s)


def lanes(topology: Topology, reports: Iterable[RankReport], items: Iterable[Pass]) -> list[Lane]:
    """The lanes from top to bottom. A rank takes about one unit, a gap between ranks 0.25."""
    ordered = sorted(reports, key=lambda report: report.rank)
    order = {stage: index for index, stage in enumerate(topology.stages)}
    used: dict[int, set[str]] = {report.rank: set() for report in ordered}
    joint: Counter[tuple[int, str, float]] = Counter()
    for item in items:
        used.setdefault(item.rank, set()).add(item.stage)
        joint[item.rank, item.stage, item.start_s] += 1
    # Rows of one forward start together and lie one above the other.
    rows: dict[tuple[int, str], int] = {}
    for (rank, stage, _), count in joint.items():
        rows[rank, stage] = max(count, rows.get((rank, stage), 1))
    found: list[Lane] = []
    top = 0.0
    for rank in sorted(used):
        if len(used) > MANY_RANKS:
            found.append(Lane(rank, "", top, 1.0))
            top += 1.0
            continue
        for stage in sorted(used[rank], key=lambda name: (order.get(name, len(order)), name)):
            spec = topology.stages.get(stage)
            height = _HEIGHTS.get(spec.kind, 1.0) if spec is not None else 1.0
            height = max(height, 0.55 * rows.get((rank, stage), 1)) if height == 1.0 else height
            found.append(Lane(rank, stage, top, height))
            top += height
        if not used[rank]:
            found.append(Lane(rank, "", top, 0.6))
            top += 0.6
        top += 0.25
    return found


def bars(items: Iterable[Pass], rows: Iterable[Lane], start_s: float, end_s: float, gap_s: float) -> list[Bar]:
    """The bars between two times. Gaps in a pass up to `gap_s` are closed; overlapping bars share their
    lane's height."""
    by_place = {(lane.rank, lane.stage): lane for lane in rows}
    filled: dict[Lane, list[Bar]] = {}
    for item in items:
        lane = by_place.get((item.rank, item.stage)) or by_place.get((item.rank, ""))
        if lane is None or item.end_s <= start_s or item.start_s >= end_s:
            continue
        for start, end in runs(item, gap_s):
            if end > start_s and start < end_s:
                filled.setdefault(lane, []).append(Bar(item, lane, start, end))
    return [bar for lane, found in filled.items() for bar in _stacked(lane, found, gap_s)]


def _stacked(lane: Lane, found: list[Bar], gap_s: float) -> Iterable[Bar]:
    found.sort(key=lambda bar: (bar.start_s, bar.item.session, -bar.item.step))
    cluster: list[Bar] = []
    reach = float("-inf")
    for bar in found:
        # A hair of overlap is a matter of clocks and rounding, not of two streams.
        if cluster and bar.start_s >= reach - gap_s:
            yield from _rows(cluster)
            cluster = []
        cluster.append(bar)
        reach = max(reach, bar.end_s) if len(cluster) > 1 else bar.end_s
    yield from _rows(cluster)


def _rows(cluster: list[Bar]) -> Iterable[Bar]:
    ends: list[float] = []
    places = []
    for bar in cluster:
        row = next((index for index, end in enumerate(ends) if end <= bar.start_s), len(ends))
        ends[row : row + 1] = [bar.end_s]
        places.append(row)
    for bar, row in zip(cluster, places, strict=True):
        yield Bar(bar.item, bar.lane, bar.start_s, bar.end_s, row, len(ends))
