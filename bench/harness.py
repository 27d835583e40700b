"""What all benches share: run the command line, take medians, and leave tables, JSON and Markdown behind.

    bench = Bench("world", "How much faster than one process?", options("..."), threads="1 per rank")
    runs = repeat(3, lambda: run_cli(WORLD_2, frames=200, sets={"groups.early.threads": 1}))
    fps = median_of(runs, "frames_per_second")
    bench.add("groups", Table("Groups", ("groups", "frames/s", "ratio"), [(2, fps, fps / serial)], notes=("...",)))
    bench.finish()

A section measures everything that it compares in one run on one machine, and says when and where that was. `--quick`
shortens it, and then it writes to out/bench, so that a smoke test never replaces a measurement in bench/results.
`--only SECTION --results bench/results` measures some sections again and leaves the others as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import psutil
from rich.console import Console
from rich.table import Table as RichTable

from paceline.launch.summary import describe_machine

__all__ = [
    "ROOT",
    "Bench",
    "BenchError",
    "Options",
    "Summary",
    "Table",
    "median_of",
    "options",
    "repeat",
    "run_cli",
    "run_json",
    "say",
]

ROOT = Path(__file__).resolve().parent.parent
"""The repository."""

Summary = dict[str, Any]
"""What `paceline run --json` ends with; `paceline/launch/summary.py` says what its fields mean."""

Cell = str | int | float | None
_T = TypeVar("_T")


class BenchError(RuntimeError):
    """A command that a bench ran has failed."""


# -- running -----------------------------------------------------------------------------------------------------------


def run_cli(
    topology: Path,
    *,
    frames: int,
    sessions: int = 1,
    seed: int | None = None,
    serial: bool = False,
    sets: Mapping[str, object] | None = None,
    extra: Sequence[str] = (),
    timeout_s: float = 300.0,
) -> Summary:
    """`paceline run TOPOLOGY --json` in processes of its own; `sets` are its `--set KEY=VALUE`.

    Raises `BenchError` with the end of what it said where it fails or takes longer than `timeout_s`.
    """
    command = ["run", str(topology), "--frames", str(frames), "--sessions", str(sessions), "--quiet", "--json", *extra]
    command += [] if seed is None else ["--seed", str(seed)]
    command += ["--serial"] if serial else []
    for key, value in (sets or {}).items():
        command += ["--set", f"{key}={value}"]
    return run_json([str(Path(sys.executable).with_name("paceline")), *command], timeout_s)


def run_json(command: Sequence[str], timeout_s: float = 300.0) -> dict[str, Any]:
    """Run a command whose last line on standard output is a JSON object, and return that. Raises `BenchError`."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{' '.join(command)}: still running after {timeout_s:.0f} s") from error
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        raise BenchError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def repeat(count: int, measure: Callable[[], _T]) -> list[_T]:
    """Measure so many times."""
    return [measure() for _ in range(count)]


def median_of(runs: Sequence[Mapping[str, Any]], *keys: str) -> float:
    """The median over runs, as `median_of(runs, "latency_ms", "p50")`. Raises `BenchError` where a value is null."""
    values = []
    for run in runs:
        value: Any = run
        for key in keys:
            value = value[key]
        if value is None:
            raise BenchError(f"a run has no {'.'.join(keys)}; give it more frames")
        values.append(float(value))
    return statistics.median(values)


def say(text: str) -> None:
    """Tell on standard error what is being measured."""
    print(text, file=sys.stderr, flush=True)


# -- options -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line of a bench says."""

    quick: bool
    only: tuple[str, ...]
    """Sections to run; empty for all."""
    results: Path

    def wants(self, section: str) -> bool:
        """Whether to run a section."""
        return not self.only or section in self.only


def options(description: str, sections: Sequence[str] = ()) -> Options:
    """Parse the command line of a bench."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="short: to see that it works, not to measure")
    parser.add_argument("--only", nargs="+", choices=sections, default=[], help="only these sections")
    parser.add_argument(
        "--results", type=Path, metavar="DIR", help="where results go (bench/results; quick: out/bench)"
    )
    given = parser.parse_args()
    partial = given.quick or given.only
    results = given.results or (ROOT / "out" / "bench" if partial else ROOT / "bench" / "results")
    return Options(given.quick, tuple(given.only), results)


# -- results -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Table:
    """One answer. Rows have a cell for each column; floats are rounded for people, and whole in the JSON."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    notes: tuple[str, ...] = ()

    def rich(self) -> RichTable:
        """For a terminal."""
        table = RichTable(title=self.title, title_justify="left")
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="right" if self._is_number(index) else "left")
        for row in self.rows:
            table.add_row(*map(_text, row))
        return table

    def markdown(self) -> str:
        """For a document."""
        rule = ["--:" if self._is_number(index) else ":--" for index in range(len(self.columns))]
        lines = [list(self.columns), rule, *([_text(cell) for cell in row] for row in self.rows)]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return "\n\n".join([f"## {self.title}", body, *self.notes])

    def _is_number(self, index: int) -> bool:
        return any(isinstance(row[index], int | float) for row in self.rows)


@dataclass(slots=True)
class Bench:
    """The results of one bench, with what they were measured on."""

    name: str
    question: str
    options: Options
    threads: str
    """Threads of compute, for people: `1 per rank`."""
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    _machine: dict[str, Any] = field(default_factory=dict)
    _start_s: float = field(default_factory=time.monotonic)
    _section_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        # What else runs here disturbs what is measured; the reader should know.
        busy = psutil.cpu_percent(interval=0.2 if self.options.quick else 1.0) / 100
        self._machine = {
            **describe_machine(),
            "pyzmq": version("pyzmq"),
            "threads": self.threads,
            "busy_before": busy,
            "load_before": os.getloadavg()[0],
        }
        if busy > 0.2:
            say(f"warning: other processes keep {busy:.0%} of this machine busy; expect noise")
        if self._machine["cores"] < (os.cpu_count() or 1):
            say(f"warning: bound to {self._machine['cores']} of {os.cpu_count()} cores; `taskset` lifts that")

    def add(self, key: str, table: Table, **raw: object) -> None:
        """Add a section and print its table; `raw` is kept in the JSON beside the rows, such as all repeats."""
        if len(set(table.columns)) < len(table.columns):
            raise ValueError(f"{table.title}: two columns have one name; the JSON has rows by name")
        rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        measured = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "took_s": round(time.monotonic() - self._section_s, 1),
            "quick": self.options.quick,
            "machine": self._machine,
        }
        self._section_s = time.monotonic()
        self.sections[key] = {
            "title": table.title, "measured": measured, "notes": table.notes, "rows": rows, **raw
        }  # fmt: skip
        console = Console()
        if not console.is_terminal:
            console = Console(width=120)
        console.print(table.rich(), *table.notes, "", sep="\n", highlight=False)

    def finish(self) -> None:
        """Write NAME.json and NAME.md."""
        self.options.results.mkdir(parents=True, exist_ok=True)
        path = self.options.results / f"{self.name}.json"
        sections = self.sections
        if self.options.only and path.exists():
            sections = json.loads(path.read_text())["sections"] | sections
        made = {"version": 1, "bench": self.name, "question": self.question, "sections": sections}
        path.write_text(json.dumps(made, indent=1) + "\n")
        parts = [f"# {self.question}", f"Measured by `bench/{self.name}.py`.", *map(_markdown, sections.values())]
        path.with_suffix(".md").write_text("\n\n".join(parts) + "\n")
        say(f"{path} and .md after {time.monotonic() - self._start_s:.0f} s")


def _markdown(section: Mapping[str, Any]) -> str:
    """A section's table, and under which conditions it was measured."""
    measured, rows = section["measured"], section["rows"]
    machine = measured["machine"]
    columns = tuple(rows[0]) if rows else ()
    table = Table(section["title"], columns, [tuple(row.values()) for row in rows], tuple(section["notes"]))
    return "\n\n".join(
        [
            table.markdown(),
            f"*{measured['date']}, {measured['took_s']:.0f} s{', --quick' if measured['quick'] else ''}; "
            f"{machine['cpu']}, {machine['cores']} cores, {machine['ram_bytes'] / 2**30:.0f} GiB, "
            f"{machine['platform']}; threads: {machine['threads']}; Python {machine['python']}, "
            f"torch {machine['torch']}, pyzmq {machine['pyzmq']}, paceline {machine['paceline']}; other processes kept "
            f"{machine['busy_before']:.0%} of the machine busy at the start.*",
        ]
    )


def _text(cell: Cell) -> str:
    """A cell for people: three or four digits."""
    if cell is None:
        return "-"
    if not isinstance(cell, float):
        return str(cell)
    size = abs(cell)
    digits = 0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{cell:.{digits}f}"
