"""A run's summary as tables for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from paceline.launch.summary import Summary
from paceline.launch.tier_table import tier_table

__all__ = ["print_summary"]

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
