"""How fast do frames of the embedded world come, placed how, and what does each context mode cost in quality?

Sections: `speed` (groups against one process with all cores), `realtime` (25 frames per second, lateness), `modes` (the
context modes at 1, 2, 4 and 8 steps: quality on held-out worlds beside speed; also a plot).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from harness import ROOT, Bench, Options, Summary, Table, median_of, options, run_cli, run_json, say
from worlds import write_world

TOPOLOGIES = ROOT / "topologies"
BOTH_CORES = {"groups.early.threads": 2, "groups.late.threads": 2}
_PASSES = {"step0": 1, "step1": 2}
"""Passes of a frame that a stage computes: the clean pass is on the second."""
MODES = ("clean", "cascade", "staggered", "matched")
STEPS = (1, 2, 4, 8)


def _fps(runs: list[Summary]) -> float:
    return median_of(runs, "frames_per_second")


def _bubbles(runs: list[Summary]) -> str:
    """Idle share of each rank, of the last run."""
    return " ".join(f"{share:.0%}" for share in runs[-1]["bubble"].values() if share is not None)


def _predicted(topology: Path, runs: list[Summary], sessions: int, sets: dict[str, object]) -> float | None:
    """Frames per second that the simulator makes of the stage costs of the last run."""
    with tempfile.TemporaryDirectory() as folder:
        measured = Path(folder) / "summary.json"
        measured.write_text(json.dumps(runs[-1]))
        command = [str(Path(sys.executable).with_name("paceline")), "plan", str(topology), "--json"]
        command += ["--sessions", str(sessions), "--measured", str(measured)]
        for key, value in sets.items():
            command += ["--set", f"{key}={value}"]
        return float(run_json(command)["frames_per_second"])


def _forward_ms(runs: list[Summary]) -> str:
    return " ".join(f"{name} {ms:.1f}" for name, ms in runs[-1]["stage_ms"].items() if name.startswith("step"))


def speed(bench: Bench, quick: bool) -> None:
    """Placements of the 2-step model in `cascade`, measured in turn so that the machine's moods hit all alike."""
    frames, repeats = (60, 1) if quick else (300, 3)
    world_2, mirrored = TOPOLOGIES / "world-2.yaml", TOPOLOGIES / "world-2-mirrored.yaml"
    zmq = _zmq(mirrored)
    world_4 = TOPOLOGIES / "world-4-mirrored.yaml"
    four = {f"groups.g{index}.threads": 2 for index in range(4)}
    # Name: topology, sessions, overrides, whether it is the serial run.
    cases: dict[str, tuple[Path, int, dict[str, object], bool]] = {
        "serial, all cores": (world_2, 1, BOTH_CORES, True),
        "serial, 1 thread": (world_2, 1, {}, True),
        "batched (world-1), all cores": (TOPOLOGIES / "world-1.yaml", 1, {}, False),
        "2 groups, dist (world-2)": (world_2, 1, {}, False),
        "2 groups, zmq (world-2-zmq)": (TOPOLOGIES / "world-2-zmq.yaml", 1, {}, False),
        "2 groups mirrored, dist": (mirrored, 2, {}, False),
        "2 groups mirrored, zmq": (mirrored, 2, zmq, False),
        "4 steps: serial, all cores": (world_4, 1, dict(four), True),
        "4 steps: 4 groups mirrored, dist (world-4)": (world_4, 2, {}, False),
        "4 steps: 4 groups mirrored, zmq": (world_4, 2, _zmq(world_4), False),
    }
    runs: dict[str, list[Summary]] = {name: [] for name in cases}
    for turn in range(repeats):
        for name, (path, sessions, sets, serial) in cases.items():
            say(f"speed {turn + 1}/{repeats}: {name}")
            runs[name].append(run_cli(path, frames=frames, sessions=sessions, sets=sets, serial=serial))
    rows = []
    for name, (path, sessions, sets, serial) in cases.items():
        base = runs["4 steps: serial, all cores" if name.startswith("4 steps") else "serial, all cores"]
        # Pair by pair within a turn, so that a slow minute slows both sides.
        ratios = [a["frames_per_second"] / b["frames_per_second"] for a, b in zip(runs[name], base, strict=True)]
        rows.append(
            (
                name,
                sessions,
                _fps(runs[name]),
                statistics.median(ratios),
                None if serial else _predicted(path, runs[name], sessions, sets),
                median_of(runs[name], "latency_ms", "p50"),
                median_of(runs[name], "latency_ms", "p99"),
                _bubbles(runs[name]),
                _forward_ms(runs[name]),
            )
        )
    columns = (
        "placement", "sessions", "frames/s", "x serial", "simulated", "latency p50 ms", "p99 ms", "idle", "pass ms",
    )  # fmt: skip
    notes = (
        "Frames/s: all sessions together. x serial: median over turns of the ratio to the serial run with all cores "
        "of the same turn and number of steps. simulated: frames/s that the simulator makes of the stage costs of "
        "the last run. idle: share of each rank. pass: median of a stage's passes.",
    )
    bench.add("speed", Table("2 steps and the clean pass, cascade", columns, rows, notes), runs=runs)
    bench.add("time", _where_time_goes(runs))


def _where_time_goes(runs: dict[str, list[Summary]]) -> Table:
    """For each rank: milliseconds of a frame (of all sessions together), by what they went for."""
    rows = []
    alone = runs["serial, 1 thread"]
    for name in (
        "serial, 1 thread",
        "2 groups, zmq (world-2-zmq)",
        "2 groups mirrored, zmq",
        "2 groups, dist (world-2)",
    ):
        for place in range(len(runs[name][0]["ranks"])):
            parts = [_parts(run, place, base) for run, base in zip(runs[name], alone, strict=True)]
            middle = [statistics.median(column) for column in zip(*parts, strict=True)]
            rows.append((name, place, *middle))
    columns = (
        "placement", "rank", "all", "its passes, alone", "slower beside the other", "decode and the like",
        "messages, dispatch", "waiting",
    )  # fmt: skip
    notes = (
        "Milliseconds per frame, frames of all sessions counted. Its passes, alone: as many as this rank computes, at "
        "their cost in the serial run of one thread of the same turn. Slower beside the other: what the same passes "
        "take more while the other rank computes on the other core (shared cache and memory, and its threads of ZMQ). "
        "Messages, dispatch: neither computing nor waiting. Waiting: nothing was ready. Medians over turns.",
        "No placement is faster than 1000 / (its passes, alone) of its slowest rank; what is lost from there to the "
        "measured rate is in the other columns of that rank.",
    )
    return Table("Where the time of a frame goes, ms", columns, rows, notes)


def _parts(run: Summary, place: int, alone: Summary) -> tuple[float, ...]:
    frames = run["frames"] * len(run["sessions"])
    rank = run["ranks"][place]
    wall, busy, waited = (1000 * rank[key] / frames for key in ("wall_s", "busy_s", "wait_s"))
    if run["serial"]:
        passes = sum(ms * _PASSES.get(stage, 0) for stage, ms in rank["stage_ms"].items())
        return wall, passes, 0.0, busy - passes, wall - busy - waited, waited
    hosts = {stage: sum(stage in other["stages"] for other in run["ranks"]) for stage in rank["stages"]}
    own = {stage: _PASSES[stage] / hosts[stage] for stage in rank["stages"] if stage in _PASSES}
    quiet = sum(count * alone["stage_ms"][stage] for stage, count in own.items())
    beside = sum(count * rank["stage_ms"][stage] for stage, count in own.items())
    return wall, quiet, beside - quiet, busy - beside, wall - busy - waited, waited


def _zmq(topology: Path) -> dict[str, object]:
    """Overrides that send every remote edge of a topology by zmq."""
    edges = yaml.safe_load(topology.read_text())["edges"]
    return {f"edges.{index}.via": "zmq" for index, edge in enumerate(edges) if edge.get("via") == "dist"}


def realtime(bench: Bench, quick: bool) -> None:
    """An action every 40 ms at two steps."""
    frames = 75 if quick else 1000
    rows = []
    runs: dict[str, Summary] = {}
    for name, path, sessions in (
        ("batched, 1 group", "world-1.yaml", 1),
        ("2 groups, dist", "world-2.yaml", 1),
        ("2 groups, zmq", "world-2-zmq.yaml", 1),
        ("2 groups mirrored, 2 sessions", "world-2-mirrored.yaml", 2),
    ):
        say(f"realtime: {name}")
        run = run_cli(TOPOLOGIES / path, frames=frames, sessions=sessions, sets={"deadline_ms": 40})
        runs[name] = run
        late = sum(session["late"] for session in run["sessions"])
        rows.append(
            (
                name,
                run["frames_per_second"] / sessions,
                late / (frames * sessions),
                run["lateness_ms"]["p50"],
                run["lateness_ms"]["p99"],
                run["lateness_ms"]["max"],
                run["latency_ms"]["p50"],
                run["latency_ms"]["p99"],
            )
        )
    columns = (
        "placement", "frames/s of a session", "share late", "lateness p50 ms", "lateness p99 ms", "lateness max ms",
        "action to frame p50 ms", "action to frame p99 ms",
    )  # fmt: skip
    bench.add("realtime", Table("25 frames per second, 2 steps, cascade", columns, rows), runs=runs)


def modes(bench: Bench, quick: bool) -> None:
    """Quality against speed."""
    frames = 40 if quick else 200
    with tempfile.TemporaryDirectory() as folder:
        say("modes: scoring held-out worlds")
        worlds, length = (8, 20) if quick else (32, 40)
        command = [sys.executable, "-m", "zoo.world.evaluate", "--worlds", str(worlds), "--frames", str(length)]
        said = subprocess.run(
            [*command, "--threads", "2", "--json"], check=True, cwd=ROOT, capture_output=True, text=True
        )
        scores = _scores(json.loads(said.stdout.splitlines()[-1]))
        rows: list[tuple[Any, ...]] = []
        for mode in MODES:
            for steps in STEPS:
                say(f"modes: {mode}, {steps} steps")
                found = scores[mode, steps]
                one = run_cli(write_world(Path(folder), mode, steps, 1), frames=frames, serial=True)
                two = run_cli(write_world(Path(folder), mode, steps, 2), frames=frames)
                rows.append(
                    (
                        mode, steps, found["persistence"], found["last"],
                        *(found["revisit"][lag][0] for lag in ("1", "2-4", "5-8", "9-16", "17-64")),
                        found["crispness"], found["entropy"],
                        one["frames_per_second"], two["frames_per_second"],
                        one["latency_ms"]["p50"], two["latency_ms"]["p50"],
                        len([value for value in two["bubble"].values() if value is not None]),
                    )
                )  # fmt: skip
    columns = (
        "mode", "steps", "persistence", "last quarter", "revisit 1", "2-4", "5-8", "9-16", "17-64", "crispness",
        "entropy", "frames/s serial", "frames/s groups", "latency serial ms", "latency groups ms", "groups",
    )  # fmt: skip
    notes = (
        "Persistence: tiles in view that keep their identity from frame to frame. Revisit: tiles that return after so "
        "many frames out of view with the identity they left with. Crispness: mean pixel error of new tiles to the "
        "nearest glyph (lower is crisper). Entropy of new tiles in bits; the prior has 5. Serial: one thread; groups: "
        "two processes of one thread by zmq (one where the mode has a single pass), one session; one run each, "
        "so speeds are rough.",
    )
    bench.add("modes", Table("Quality against speed", columns, rows, notes))
    _plot(rows, bench.options.results / "world-modes.png")


def _scores(found: dict[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    return {(entry["mode"], entry["steps"]): entry for entry in found["rollouts"]}


def _plot(rows: list[tuple[Any, ...]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), constrained_layout=True)
    colours = {"clean": "#0072B2", "cascade": "#D55E00", "staggered": "#009E73", "matched": "#CC79A7"}
    for axis, column, title in (
        (axes[0], 2, "tiles that persist"),
        (axes[1], 6, "revisits after 5-8 frames that are right"),
    ):
        for mode in MODES:
            mine = [row for row in rows if row[0] == mode]
            axis.plot([row[12] for row in mine], [row[column] for row in mine], "o-", color=colours[mode], label=mode)
            for row in mine:
                axis.annotate(
                    str(row[1]), (row[12], row[column]), textcoords="offset points", xytext=(5, 5), fontsize=8
                )
        axis.set(xlabel="frames per second, one session, two groups", ylabel=title, xscale="log", ylim=(0.4, 1.02))
        axis.set_xticks([25, 50, 100, 200], labels=["25", "50", "100", "200"])
        axis.minorticks_off()
        axis.axvline(25, color="grey", lw=0.8, ls=":")
        axis.grid(alpha=0.3)
    axes[0].legend(title="context (label: steps)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Run the sections asked for."""
    sections: dict[str, Callable[[Bench, bool], None]] = {"speed": speed, "realtime": realtime, "modes": modes}
    given: Options = options(__doc__ or "", tuple(sections))
    bench = Bench(
        "world", "How fast do frames come, and what does each context mode cost?", given, "1 per rank; serial: as named"
    )
    for name, section in sections.items():
        if given.wants(name):
            section(bench, given.quick)
    bench.finish()


if __name__ == "__main__":
    main()
