"""What does the pipeline cost over the ideal? Stages that only sleep, so that all else is the runtime's.

Sections: `share` (throughput against 1 / slowest stage), `hops` (microseconds per hop against bare sockets), `ramp`
(wavefront and mirrored against formula and simulator), `gpipe` (the same stages by torch.distributed.pipelining).

Every topology here has as many processes as sleeping stages: source and sink share rank 0 with the first stage, as in
the shipped topologies, so their work counts against us. One row of `share` gives them a rank of their own instead.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path

import yaml

from bench.harness import ROOT, Bench, Options, Summary, Table, median_of, options, repeat, run_cli, run_json, say
from paceline.pipeline.costs import costs_from
from paceline.pipeline.load import load_topology
from paceline.pipeline.program import ModelShape
from paceline.pipeline.simulate import simulate

_NO_MODEL = ModelShape(1, 0, 0, 0)
_SIZES = {"4 KiB": 4 * 2**10, "256 KiB": 256 * 2**10, "4 MiB": 4 * 2**20}
_TEN_MS = (10.0, 10.0, 10.0, 10.0)
_RAMP = (10.0, 15.0, 25.0, 30.0)
_VALLEY = (30.0, 20.0, 20.0, 30.0)
_STEADY = 60  # items that the simulator needs to be past the filling


@dataclass(frozen=True, slots=True)
class Settings:
    """How long it takes."""

    repeats: int
    ranks: tuple[int, ...]
    frames: int
    """of `share` and `ramp`"""
    sizes: tuple[str, ...]
    round_trips: int
    ramps: tuple[tuple[float, ...], ...]
    items: int
    """of `gpipe`"""
    microbatches: tuple[int, ...]


_FULL = Settings(3, (2, 4, 8), 120, tuple(_SIZES), 100, (_RAMP, _VALLEY), 64, (4, 16, 64))
_QUICK = Settings(1, (4,), 32, ("4 KiB",), 40, (_RAMP,), 16, (4, 16))


# -- topologies --------------------------------------------------------------------------------------------------------


def _chain(
    folder: Path,
    ms: Sequence[float],
    via: str,
    *,
    groups: Sequence[str] | None = None,
    item_bytes: int = 4096,
    inflight: int = 2,
    pace_ms: float | None = None,
) -> Path:
    """Write a topology of sleeping stages, the s-th on the s-th of `groups`; source and sink are on `ends`, or else on
    g0, the group of the first stage."""
    groups = groups or [f"g{index}" for index in range(len(ms))]
    ends = "ends" if "ends" in groups else "g0"
    placed = [group for group in groups if group != "ends"]
    costs = enumerate(zip(placed, ms, strict=True))
    steps = {f"step{index}": {"kind": "sleep", "group": group, "ms": cost} for index, (group, cost) in costs}
    names = ["source", *steps, "sink"]
    topology = {
        "name": f"sleep-{len(ms)}-{via}",
        "workload": "sleep",
        "deadline_ms": pace_ms,
        "groups": {group: {"ranks": 1} for group in dict.fromkeys([ends, *placed])},
        "stages": {
            "source": {"kind": "source", "group": ends, "item_bytes": item_bytes},
            **steps,
            "sink": {"kind": "sink", "group": ends},
        },
        "edges": [
            {"from": source, "to": target, "via": via, "inflight": inflight, "bytes": max(item_bytes * inflight, 4096)}
            for source, target in pairwise(names)
        ],
    }
    file = folder / f"{topology['name']}.yaml"
    file.write_text(yaml.safe_dump(topology, sort_keys=False))
    return file


# -- sections ----------------------------------------------------------------------------------------------------------


def share(bench: Bench, folder: Path, settings: Settings) -> None:
    """Throughput of equal stages against 1 / 10 ms."""
    slept = _sleep_ms(10.0)
    rows, raw = [], []
    layouts = [(count, via, False) for count in settings.ranks for via in ("zmq", "dist")]
    for count, via, apart in [*layouts, (4, "zmq", True)]:
        say(f"share: {count} stages, {via}{', ends on a rank of their own' if apart else ''}")
        groups = ["ends", *(f"g{index}" for index in range(count))] if apart else None
        file = _chain(folder, [10.0] * count, via, groups=groups)
        runs = repeat(settings.repeats, partial(run_cli, file, frames=settings.frames))
        period = median_of(runs, "period_ms")
        stage = statistics.median(max(run["stage_ms"].values()) for run in runs)
        ideal_all = settings.frames / (settings.frames + count - 1) * 100
        whole = median_of(runs, "frames_per_second")
        ranks = f"{count} + 1" if apart else str(count)
        rows.append((ranks, via, 1000 / period, 10 / period, stage, stage / period, whole, whole / ideal_all))
        raw.append({"ranks": ranks, "via": via, "runs": [_brief(run) for run in runs]})
    columns = (
        "ranks", "via", "items/s", "of 1 / 10 ms", "slowest stage, ms", "of 1 / stage", "items/s, all", "of its ideal",
    )  # fmt: skip
    notes = (
        f"Steady state, and all {settings.frames} items with fill and drain, where the ideal is N / ((N + S - 1) * "
        f"10 ms); medians of {settings.repeats}.",
        f"`time.sleep` of 10 ms takes {slept:.3f} ms in a process that does nothing else (median of 100): at best "
        f"{10 / slept:.3f} of 1 / 10 ms. The slowest stage is measured inside the worker, and 'of 1 / stage' is what "
        "remains for the runtime.",
        "Source and sink are on rank 0 beside the first stage; in '4 + 1' on a rank of their own.",
    )
    bench.add(
        "share", Table("Throughput of sleeping stages, 10 ms each", columns, rows, notes), raw=raw, slept_ms=slept
    )


def hops(bench: Bench, folder: Path, settings: Settings) -> None:
    """Time of a hop against that of bare sockets, one item at a time."""
    rows, raw = [], []
    for size in settings.sizes:
        nbytes = _SIZES[size]
        # Slow enough that an item is home before the next one leaves.
        pace_ms = 40.0 if nbytes > 2**20 else 20.0
        for via in ("local", "zmq", "dist"):
            say(f"hops: {size}, {via}")
            groups = ["g0"] if via == "local" else ["ends", "g0"]
            file = _chain(folder, [0.0], via, groups=groups, item_bytes=nbytes, inflight=1, pace_ms=pace_ms)
            run = run_cli(file, frames=settings.round_trips)
            latency, stage = run["latency_ms"]["p50"], run["stage_ms"]["step0"]
            hop = (latency - stage) / 2 * 1e3
            paced, hot = None, None
            if via != "local":
                paced = _raw_hop(via, nbytes, settings.round_trips, pace_ms)
                hot = _raw_hop(via, nbytes, settings.round_trips, 0.0)
            over = None if paced is None else hop - paced
            ratio = None if paced is None else hop / paced
            rows.append((size, via, hop, paced, hot, over, ratio, 2 * hop / 1e4))
            raw.append({"size": size, "via": via, "pace_ms": pace_ms, "run": _brief(run)})
    columns = (
        "item", "via", "hop, µs", "bare, same pace, µs", "bare, back to back, µs", "overhead, µs", "hop / bare",
        "two hops of a 10 ms stage",
    )  # fmt: skip
    notes = (
        f"A ring of two ranks (local: one), source to stage to sink, credit for one item, {settings.round_trips} "
        "items: hop = (median latency - median time in the stage) / 2. An item leaves every 20 ms (4 MiB: 40 ms) and "
        "is home by then, so nothing queues and every hop wakes threads that slept.",
        "Bare: half of the median round trip of two processes that bounce the same bytes by a ZMQ PAIR over ipc, or by "
        "gloo send and recv; at the same pace, and back to back.",
    )
    bench.add("hops", Table("Overhead per hop", columns, rows, notes), raw=raw)


def ramp(bench: Bench, folder: Path, settings: Settings) -> None:
    """Two sessions over uneven stages: wavefront and mirrored against formula and simulator."""
    rows, raw = [], []
    frames = settings.frames // 2
    for ms in settings.ramps:
        measured: dict[str, float] = {}
        for schedule in ("wavefront", "mirrored"):
            say(f"ramp: {_name(ms)}, {schedule}")
            file = _chain(folder, ms, "zmq")
            sets = {"schedule": schedule}
            runs = repeat(settings.repeats, partial(run_cli, file, frames=frames, sessions=2, sets=sets))
            topology = load_topology(file, [f"schedule={schedule}"])
            # The simulator knows stages as the topology gives them, and then as this run measured them.
            given = simulate(topology, _NO_MODEL, costs_from(topology), frames=_STEADY, sessions=2)
            stage_ms = {name: median_of(runs, "stage_ms", name) for name in runs[0]["stage_ms"]}
            costs = costs_from(topology, {"stage_ms": stage_ms})
            told = simulate(topology, _NO_MODEL, costs, frames=_STEADY, sessions=2)
            pair_ms = max(_pair_ms(ms, schedule))
            rate = 2000 / median_of(runs, "period_ms")
            measured[schedule] = rate
            gain = rate / measured["wavefront"]
            rows.append((_name(ms), schedule, 2000 / pair_ms, given.frames_per_second, told.frames_per_second, rate,
                         rate * pair_ms / 2000, rate / told.frames_per_second, gain))  # fmt: skip
            raw.append({"ms": ms, "schedule": schedule, "runs": [_brief(run) for run in runs]})
    columns = (
        "stages, ms", "schedule", "formula, items/s", "simulated", "simulated, measured stages", "measured, items/s",
        "of formula", "of simulated", "over wavefront",
    )  # fmt: skip
    notes = (
        f"Two sessions of {frames} items over four ranks by zmq, both together, steady state; medians of "
        f"{settings.repeats}. Formula, per pair of items: 2 max t_s (wavefront), max (t_s + t_(S-1-s)) (mirrored).",
        "'Of simulated' compares with the simulator that was given the stage times of these runs.",
    )
    bench.add("ramp", Table("Uneven stages: wavefront and mirrored", columns, rows, notes), raw=raw)


def gpipe(bench: Bench, folder: Path, settings: Settings) -> None:
    """The same stages and number of items by torch.distributed.pipelining, turn about."""
    pipelines = (_TEN_MS, _RAMP)
    peer = [sys.executable, str(ROOT / "bench" / "gpipe_peer.py"), "--items", str(settings.items), "--microbatches"]
    peer += [str(count) for count in settings.microbatches]
    peer += [word for ms in pipelines for word in ("--ms", ",".join(map(str, ms)))]
    ours: dict[tuple[float, ...], list[Summary]] = {ms: [] for ms in pipelines}
    theirs: list[Summary] = []
    for turn in range(settings.repeats):
        say(f"gpipe: turn {turn + 1} of {settings.repeats}")
        for ms in pipelines:
            ours[ms].append(run_cli(_chain(folder, ms, "dist"), frames=settings.items))
        theirs += run_json(peer)["runs"]
    rows = []
    for ms in pipelines:
        ideal = settings.items / (sum(ms) + (settings.items - 1) * max(ms)) * 1e3
        base, steady = median_of(ours[ms], "frames_per_second"), 1e3 / median_of(ours[ms], "period_ms")
        latency = median_of(ours[ms], "latency_ms", "p50")
        rows.append((_name(ms), "Paceline, dist", base, base / ideal, 1.0, steady, latency))
        for count, runs in _by_microbatches(theirs, ms):
            rate, period = median_of(runs, "items_per_second"), median_of(runs, "period_ms")
            label = f"GPipe, batches of {count}"
            rows.append(
                (_name(ms), label, rate, rate / ideal, base / rate, 1e3 / period, median_of(runs, "latency_ms"))
            )
    columns = ("stages, ms", "runtime", "items/s, all", "of ideal", "Paceline / this", "items/s, steady", "latency, ms")
    notes = (
        f"{settings.items} items of 4 KiB over four processes by gloo; medians of {settings.repeats} turns. All: from "
        "the first start to the last end, with fill and drain; the ideal is N / (sum t + (N - 1) max t). Latency: "
        "median from an item's start to its end, with what queues.",
        "GPipe (`ScheduleGPipe.eval`, no gradients) takes a whole batch at once, one item per microbatch, and drains "
        "between batches; one untimed batch goes first, where ours start cold. Its items end on the last rank, ours "
        "travel one hop further, back to the sink on rank 0.",
    )
    raw = {"paceline": [_brief(run) for ms in pipelines for run in ours[ms]], "gpipe": theirs}
    bench.add("gpipe", Table("The same stages by torch.distributed.pipelining", columns, rows, notes), raw=raw)


# -- helpers -----------------------------------------------------------------------------------------------------------


def _sleep_ms(ms: float) -> float:
    took = []
    for _ in range(100):
        start = time.monotonic()
        time.sleep(ms / 1e3)
        took.append(time.monotonic() - start)
    return statistics.median(took) * 1e3


def _raw_hop(via: str, nbytes: int, count: int, every_ms: float) -> float:
    script = str(ROOT / "bench" / "raw_hops.py")
    command = [sys.executable, script, via, str(nbytes), "--count", str(count), "--every-ms", str(every_ms)]
    return float(run_json(command)["hop_us"])


def _pair_ms(ms: Sequence[float], schedule: str) -> list[float]:
    """By rank: its work for one item of each of two sessions."""
    other = reversed(ms) if schedule == "mirrored" else ms
    return [a + b for a, b in zip(ms, other, strict=True)]


def _by_microbatches(runs: Sequence[Summary], ms: Sequence[float]) -> Iterator[tuple[int, list[Summary]]]:
    mine = sorted((run for run in runs if run["ms"] == list(ms)), key=lambda run: run["microbatches"])
    for count, group in groupby(mine, key=lambda run: run["microbatches"]):
        yield count, list(group)


def _brief(run: Summary) -> Summary:
    """What of a run is kept."""
    return {key: run[key] for key in ("frames_per_second", "period_ms", "latency_ms", "stage_ms", "wall_s", "bubble")}


def _name(ms: Sequence[float]) -> str:
    return "/".join(f"{value:g}" for value in ms)


_SECTIONS = {"share": share, "hops": hops, "ramp": ramp, "gpipe": gpipe}


def main() -> None:
    """Run the bench."""
    given: Options = options((__doc__ or "").partition("\n")[0], tuple(_SECTIONS))
    settings = _QUICK if given.quick else _FULL
    bench = Bench("pipeline", "What does the pipeline cost over the ideal?", given, threads="1 per rank")
    with tempfile.TemporaryDirectory() as folder:
        for name, section in _SECTIONS.items():
            if given.wants(name):
                section(bench, Path(folder), settings)
    bench.finish()


if __name__ == "__main__":
    main()
