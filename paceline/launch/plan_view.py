"""A plan for people (tables and boxes) and for programs (JSON)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from paceline.pipeline.costs import LinkLoad
from paceline.pipeline.liveness import proof_of
from paceline.pipeline.placement import Placement
from paceline.pipeline.plan import Cell, Plan, RankPlan
from paceline.pipeline.stage import StageKind
from paceline.pipeline.strict_model import format_size
from paceline.pipeline.topology import Schedule, Topology

__all__ = ["plan_json", "show_plan"]

_MANY = 32
"""Longer lists are cut, with a line that says so; JSON has all."""


def show_plan(plan: Plan, console: Console) -> None:
    """Print a plan."""
    topology = plan.topology
    mode = f", context {topology.context.mode}" if topology.reads_context else ""
    console.print(Text(f"{topology.name}: {topology.schedule}{mode}, {plan.sessions} session(s)", style="bold"))
    console.print(_groups(topology))
    console.print(_edges(topology))
    console.print(_placement(plan))
    console.print(_figures(plan))
    if any(plan.loads.values()):
        console.print(_traffic(plan))
    console.print(_timetable(plan))
    if plan.deadlock is None:
        console.print(Text(f"live: no order and no delay can deadlock it ({proof_of(topology)})", style="green"))
    else:
        console.print(Text(str(plan.deadlock), style="bold red"))
    for warning in plan.warnings:
        console.print(Text(f"warn: {warning}", style="yellow"))


# -- the graph ---------------------------------------------------------------------------------------------------------


def _groups(topology: Topology) -> Columns:
    """A box for each group, in the order of the file."""
    boxes = []
    for name, group in topology.groups.items():
        lines = []
        for stage, spec in topology.stages.items():
            if spec.group != name:
                continue
            steps = f" {','.join(str(step) for step in spec.steps)}" if spec.steps else ""
            kind = (
                ""
                if spec.kind in (StageKind.source, StageKind.sink) and stage == spec.kind
                else f" ({spec.kind}{steps})"
            )
            lines.append(Text(f"{stage}{kind}"))
        ranks = "" if group.ranks == 1 else f" x {group.ranks}"
        boxes.append(Panel(Group(*lines), title=f"{name}{ranks}", subtitle=group.device, expand=False))
    return Columns(boxes[:_MANY], padding=(0, 1))


def _edges(topology: Topology) -> Text:
    """Items go right; KV goes back."""
    lines = []
    for index, edge in enumerate(topology.edges):
        limits = f"{edge.via}, {edge.inflight} x, {format_size(edge.bytes)}"
        if edge.carries == "kv":
            lines.append((f"  {index:>3}  {edge.target} ◀┄ kv {limits} ┄ {edge.source}", "cyan"))
        else:
            lines.append((f"  {index:>3}  {edge.source} ── {limits} ─▶ {edge.target}", ""))
    text = Text("edges (transport, items and bytes in flight)\n", style="italic")
    for line, style in lines[:_MANY]:
        text.append(line + "\n", style=style or "not italic")
    if len(lines) > _MANY:
        text.append(f"  ... and {len(lines) - _MANY} more\n")
    return text


# -- tables ------------------------------------------------------------------------------------------------------------


def _placement(plan: Plan) -> Table:
    table = Table(title="placement", title_justify="left")
    table.add_column("rank", justify="right")
    for name in ("group", "device", "stages"):
        table.add_column(name)
    remembers = any(rank.memory_bytes for rank in plan.ranks)
    for name in ("work / frame", "idle", "weights", "KV", *(["memory"] if remembers else [])):
        table.add_column(name, justify="right")
    for rank in plan.ranks[:_MANY]:
        table.add_row(
            str(rank.rank),
            rank.group,
            rank.device,
            _streams(plan, rank),
            _ms(rank.work_s),
            "-" if math.isnan(rank.bubble) else f"{rank.bubble:.0%}",
            format_size(rank.weights_bytes) if rank.weights_bytes else "-",
            format_size(rank.kv_bytes) if rank.kv_bytes else "-",
            *([format_size(rank.memory_bytes) if rank.memory_bytes else "-"] if remembers else []),
        )
    if len(plan.ranks) > _MANY:
        table.add_row("...", f"{len(plan.ranks) - _MANY} more")
    return table


def _streams(plan: Plan, rank: RankPlan) -> str:
    """Stages of a rank; with the sessions where they are not all of them."""
    sessions: dict[str, list[int]] = {}
    for stage, session in rank.streams:
        sessions.setdefault(stage, []).append(session)
    return ", ".join(
        stage if len(which) == plan.sessions else f"{stage} (session {','.join(map(str, which))})"
        for stage, which in sessions.items()
    )


def _figures(plan: Plan) -> Table:
    table = Table(title=f"prediction ({plan.frames} simulated frames)", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    pair = plan.topology.schedule is Schedule.mirrored
    table.add_row("period", _ms(plan.period_s), "between frames of one session, simulated")
    rule = "busiest rank, one frame of every session"
    table.add_row("bound by work", _ms(plan.busiest_s), rule + (": max (t_s + t_S-1-s)" if pair else ""))
    if plan.loop_s:
        table.add_row("bound by context", _ms(plan.loop_s), "one session: latents forward, KV back")
    rate = "-" if math.isnan(plan.frames_per_second) else f"{plan.frames_per_second:.1f}"
    table.add_row("frames per second", rate, "all sessions together")
    table.add_row("action to frame, p50", _ms(plan.latency_p50_s), "actions at that pace, or at the deadline's")
    table.add_row("action to frame, p99", _ms(plan.latency_p99_s), "")
    table.add_row("action to frame, queued", _ms(plan.queued_latency_s), "p50 where the source fills every edge")
    return table


def _traffic(plan: Plan) -> Table:
    """Bytes per slot on every link between ranks, in all context modes of this placement."""
    placement = Placement(plan.topology)
    slots = {mode: next((load.slot_s for load in loads), 0.0) for mode, loads in plan.loads.items()}
    modes = plan.topology.reads_context
    title = "bytes per slot on each link between ranks"
    table = Table(title=f"{title}, by context mode" if modes else title, title_justify="left")
    table.add_column("link")
    table.add_column("via")
    for mode in plan.loads:
        own = f"{mode} *\n" if mode is plan.topology.context.mode else f"{mode}\n"
        table.add_column(f"{own if modes else ''}{_ms(slots[mode])} slot", justify="right")
    ways = sorted({(load.source, load.target, load.via) for loads in plan.loads.values() for load in loads})
    for source, target, via in ways[:_MANY]:
        cells = [
            _load(next((x for x in loads if (x.source, x.target, x.via) == (source, target, via)), None))
            for loads in plan.loads.values()
        ]
        ends = f"{placement.group_of_rank(source)} ({source}) -> {placement.group_of_rank(target)} ({target})"
        table.add_row(ends, via, *cells)
    if len(ways) > _MANY:
        table.add_row(f"... {len(ways) - _MANY} more", "", *("" for _ in plan.loads))
    return table


def _load(load: LinkLoad | None) -> Text:
    if load is None or not load.bytes_per_slot:
        return Text("-", style="dim")
    rate = f" ({load.bytes_per_s / 1e6:.3g} MB/s)" if load.slot_s > 0 else ""
    return Text(f"{format_size(load.bytes_per_slot)}{rate}", style="" if load.fits else "bold red")


def _timetable(plan: Plan) -> Table:
    """Which pass every rank computes in the first slots, as frame.step."""
    table = Table(title="timetable of the first slots: frame.step", title_justify="left", pad_edge=False)
    table.add_column("slot", justify="right", style="dim")
    used = [rank for rank in range(len(plan.ranks)) if any(slot[rank] for slot in plan.timetable)][:16]
    for rank in used:
        table.add_column(f"rank {rank}")
    for number, slot in enumerate(plan.timetable):
        table.add_row(str(number), *(_cells(plan, slot[rank]) for rank in used))
    return table


def _cells(plan: Plan, cells: Sequence[Cell]) -> str:
    steps = plan.topology.last_level if plan.topology.reads_context else -1
    return " ".join(
        f"{'abcdefghijklmnopqrstuvwxyz'[cell.session % 26] if plan.sessions > 1 else ''}"
        f"{cell.row.frame}.{'c' if cell.row.step == steps else cell.row.step}"
        for cell in cells
    )


def _ms(seconds: float) -> str:
    return "-" if math.isnan(seconds) else f"{seconds * 1000:.4g} ms"


# -- JSON --------------------------------------------------------------------------------------------------------------


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain data: times in milliseconds, sizes in bytes, null for what is unknown."""
    topology = plan.topology
    return {
        "topology": topology.name,
        "schedule": topology.schedule.value,
        "context": topology.context.mode.value if topology.reads_context else None,
        "sessions": plan.sessions,
        "frames": plan.frames,
        "live": plan.deadlock is None,
        "proof": proof_of(topology) if plan.deadlock is None else None,
        "deadlock": None if plan.deadlock is None else str(plan.deadlock),
        "warnings": list(plan.warnings),
        "period_ms": _number(plan.period_s),
        "bound_ms": {
            "work": _number(plan.busiest_s),
            "context": _number(plan.loop_s),
        },
        "frames_per_second": _plain(plan.frames_per_second),
        "latency_ms": {
            "p50": _number(plan.latency_p50_s),
            "p99": _number(plan.latency_p99_s),
            "queued_p50": _number(plan.queued_latency_s),
        },
        "ranks": [
            {
                "rank": rank.rank,
                "group": rank.group,
                "device": rank.device,
                "streams": [{"stage": stage, "session": session} for stage, session in rank.streams],
                "work_ms": _number(rank.work_s),
                "bubble": _plain(rank.bubble),
                "weights_bytes": rank.weights_bytes,
                "kv_bytes": rank.kv_bytes,
                "memory_bytes": rank.memory_bytes,
            }
            for rank in plan.ranks
        ],
        "loads": {mode.value: _loads(loads) for mode, loads in plan.loads.items()},
        "timetable": [
            [[[cell.session, cell.row.frame, cell.row.step] for cell in cells] for cells in slot]
            for slot in plan.timetable
        ],
    }


def _loads(loads: Iterable[LinkLoad]) -> list[dict[str, Any]]:
    return [
        {
            "source": load.source,
            "target": load.target,
            "via": load.via.value,
            "bytes_per_slot": load.bytes_per_slot,
            "slot_ms": _number(load.slot_s),
            "bytes_per_second": _plain(load.bytes_per_s),
            "fits": load.fits,
        }
        for load in loads
    ]


def _number(seconds: float) -> float | None:
    return _plain(seconds * 1000)


def _plain(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
