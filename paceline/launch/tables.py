"""A run's summary as tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from paceline.launch.summary import Summary
from paceline.pipeline.strict_model import format_size

__all__ = ["print_summary", "tier_table"]


_HASH_DIGITS = 12


def print_summary(console: Console, summary: Summary) -> None:
    """Print what a person wants to know of a run."""
    console.print(_headline(summary))
    console.print(_sessions(summary))
    console.print(_ranks(summary))
    tiers = tier_table(summary["tiers"])
    if tiers is not None:
        console.print(tiers)


def _headline(summary: Summary) -> Table:
    table = Table(title=f"{summary['topology']}, seed {summary['seed']}", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    latency = summary["latency_ms"]
    table.add_row("frames per second", _number(summary["frames_per_second"]))
    table.add_row("period", _number(summary["period_ms"], " ms"))
    table.add_row("action to frame, p50", _number(latency["p50"], " ms"))
    table.add_row("action to frame, p99", _number(latency["p99"], " ms"))
    lateness = summary["lateness_ms"]
    if lateness is not None:
        late = sum(session["late"] for session in summary["sessions"])
        table.add_row("late frames", str(late))
        table.add_row("lateness, p99", _number(lateness["p99"], " ms"))
        table.add_row("decisions", f"{len(summary['decisions'])} ({summary['on_late']})")
    return table


def _sessions(summary: Summary) -> Table:
    table = Table(title="sessions", title_justify="left")
    for name in ("session", "frames", "late"):
        table.add_column(name, justify="right")
    table.add_column("outputs (sha-256)")
    for session in summary["sessions"]:
        digest = session["outputs_sha256"][:_HASH_DIGITS]
        ended = "" if session["failed"] is None else f"  failed at frame {session['frames']}"
        table.add_row(str(session["id"]), str(session["frames"]), str(session["late"]), digest + ended)
    return table


def _ranks(summary: Summary) -> Table:
    table = Table(title="ranks", title_justify="left")
    table.add_column("rank", justify="right")
    for name in ("group", "device", "stages (median ms)"):
        table.add_column(name)
    for name in ("threads", "idle", "peak memory"):
        table.add_column(name, justify="right")
    for rank in summary["ranks"]:
        bubble = summary["bubble"][str(rank["rank"])]
        stage_ms = rank["stage_ms"]
        stages = (f"{stage} {stage_ms[stage]:.2f}" if stage in stage_ms else stage for stage in rank["stages"])
        table.add_row(
            str(rank["rank"]),
            rank["group"],
            rank["device"],
            ", ".join(stages),
            str(rank["threads"]),
            "-" if bubble is None else f"{bubble:.0%}",
            f"{rank['peak_rss_bytes'] / 2**20:.0f} MiB",
        )
    return table


def _number(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.2f}{unit}"


def tier_table(tiers: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """By group and tier; `tiers` is that of a summary. None where no group has any."""
    if not tiers:
        return None
    table = Table(title="memory tiers", title_justify="left")
    table.add_column("group")
    table.add_column("tier")
    for name in ("most blocks", "most bytes", "blocks read"):
        table.add_column(name, justify="right")
    for group, found in tiers.items():
        for tier, hits in found["hits"].items():
            share = f"{hits / found['lookups']:.1%}" if found["lookups"] else "-"
            table.add_row(group, tier, str(found["most_blocks"][tier]), format_size(found["most_bytes"][tier]), share)
    moved = sum(found["moved_bytes"] for found in tiers.values())
    waited = sum(sum(found["stall_seconds"].values()) for found in tiers.values())
    errors = sum(sum(found["errors"].values()) for found in tiers.values())
    table.caption = f"moved {format_size(moved)}, waited {waited:.2f} s, {errors} disk errors"
    table.caption_justify = "left"
    return table
