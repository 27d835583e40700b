"""What does a context memory of constant size cost, and what does it remember?

Sections: `length` (sessions of five minutes: memory, recall and full KV), `score` (tiles that come back, by how long
they were out of view, with and without the memory), `rules` (the shipped network with each rule), `steps` (denoising
steps), `capacity` (ideal codes: rules, and one tall state against many heads of the same bytes).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from statistics import median
from typing import Any

import numpy as np
import torch
from harness import ROOT, Bench, Options, Table, options, run_json, say
from long import watch

from paceline.stages.memory import MEMORIES, Writes, make_memory
from paceline.stages.world_file import MemoryShape
from zoo.world.rollout import record

MODES = ("clean", "cascade")
LAGS = ("5-8", "9-16", "17-64", "65-256")
MEMORY, RECALL = "world-2-memory", "world-2"
HELD_OUT = 20_000
"""Seed of the first world: no choice was made on these"""
LENGTHS: dict[str, tuple[str, Mapping[str, str], int]] = {
    "memory, 25 frames/s": (MEMORY, {"deadline_ms": "40"}, 7500),
    "recall": (RECALL, {"context.recall": "2"}, 7500),
    "full KV": (RECALL, {"context.window": "2000"}, 1500),
}


def length(bench: Bench, quick: bool) -> None:
    """CPU time and memory of every rank along a session."""
    rows: list[tuple[Any, ...]] = []
    raw = {}
    for name, (world, sets, frames) in LENGTHS.items():
        count, step = (400, 100) if quick else (frames, 500 if frames > 2000 else 250)
        say(f"length: {name}, {count} frames")
        ranks, run = watch(world, sets, count, step)
        late = sum(session["late"] for session in run["sessions"]) / run["frames"] if "deadline_ms" in sets else None
        raw[name] = [asdict(rank) for rank in ranks]
        for number, rank in enumerate(ranks):
            cost = [rank.cpu_ms(mark, step) for mark in (2 * step, count)]
            size = [rank.rss_bytes[mark] / 2**20 for mark in (2 * step, count)]
            rows.append(
                (
                    name,
                    count,
                    number,
                    *cost,
                    cost[1] / cost[0],
                    *size,
                    size[1] / size[0],
                    run["frames_per_second"],
                    late,
                )
            )
    columns = (
        "context", "frames", "rank", "CPU ms/frame, second part", "last part", "ratio", "MiB, second part",
        "last part ", "ratio ", "frames/s", "share late",
    )  # fmt: skip
    notes = (
        "A part is 500 frames, of full KV 250. Medians of ten pieces of a part, on a machine of constant speed (as in "
        "`bench/long.py`). `full KV`: the window holds the whole session.",
    )
    bench.add("length", Table("Along a session", columns, rows, notes), ranks=raw)


def _evaluated(world: str, sets: Mapping[str, str], worlds: int, frames: int, *more: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "zoo.world.evaluate", "--topology", str(ROOT / "topologies" / f"{world}.yaml")]
    command += [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    command += ["--worlds", str(worlds), "--frames", str(frames), "--seed", str(HELD_OUT), *more, "--json"]
    return run_json(command, 3600)


def _shares(found: Mapping[str, Any]) -> tuple[Any, ...]:
    return found["kept"], found["painted"], *(found["revisit"][lag] for lag in LAGS)


SCORED = ("kept", "painted", *(f"back after {lag}" for lag in LAGS))


def score(bench: Bench, quick: bool) -> None:
    """Free rollouts on held-out worlds."""
    worlds, frames = (2, 40) if quick else (32, 96)
    cases: dict[str, tuple[str, Mapping[str, str], tuple[str, ...]]] = {
        "memory": (MEMORY, {}, ()),
        "empty memory": (MEMORY, {}, ("--control", "zero")),
        "memory of another world": (MEMORY, {}, ("--control", "swap")),
        "recall, no memory": (RECALL, {"context.recall": "2"}, ()),
        "window alone, no memory": (RECALL, {"context.recall": "0"}, ()),
    }
    rows = []
    for mode in MODES:
        for name, (world, sets, more) in cases.items():
            say(f"score: {mode}, {name}")
            found = _evaluated(world, {**sets, "context.mode": mode}, worlds, frames, *more)
            rows.append((mode, name, *_shares(found), found["state_bytes"]))
    columns = ("mode", "context", *SCORED, "bytes of state")
    note = (
        f"{worlds} worlds of {frames} frames, 2 steps; shares of tiles that look as they did when they were last seen."
    )
    bench.add("score", Table("What is remembered", columns, rows, (note,)))


def rules(bench: Bench, quick: bool) -> None:
    """The shipped network, trained with the delta rule, under every rule."""
    worlds, frames = (2, 40) if quick else (8, 100)
    rows = []
    for kind in MEMORIES.names():
        say(f"rules: {kind}")
        found = _evaluated(MEMORY, {"context.memory.kind": kind}, worlds, frames)
        write_ms, read_ms = _cost(kind, MemoryShape(4, 64, 512, 13, (64, 52)), 5 if quick else 200)
        rows.append((kind, *_shares(found), found["state_bytes"], write_ms, read_ms))
    columns = ("rule", *SCORED, "bytes of state", "ms a write", "ms a read")
    notes = (
        f"{worlds} worlds of {frames} frames, cascade, 2 steps. The network and what it writes were trained with the "
        "delta rule; the other rules have their default options. A write is that of a frame; one thread, medians.",
    )
    bench.add("rules", Table("Rules", columns, rows, notes))


def _cost(kind: str, shape: MemoryShape, times: int) -> tuple[float, float]:
    """Milliseconds of a write and of a read of a frame."""
    torch.set_num_threads(1)
    rule = make_memory(kind, {})
    state = rule.empty(shape, torch.device("cpu"))
    keys = torch.nn.functional.normalize(torch.randn(shape.heads, shape.tokens, shape.keys), dim=-1)
    writes = Writes(keys, torch.randn(shape.heads, shape.tokens, shape.values), torch.ones(shape.heads, shape.tokens))
    took: dict[str, list[float]] = {"write": [], "read": []}
    calls: dict[str, Callable[[], object]] = {
        "write": lambda: rule.write(state, writes),
        "read": lambda: rule.attend(state, keys),
    }
    for _ in range(times):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            took[name].append(time.perf_counter() - start)
    return 1000 * median(took["write"]), 1000 * median(took["read"])


def steps(bench: Bench, quick: bool) -> None:
    """1, 2, 4 and 8 denoising steps from the same weights."""
    worlds, frames = (2, 40) if quick else (8, 72)
    weights = ROOT / "zoo" / "world-memory" / "weights.safetensors"
    command = [sys.executable, "-m", "zoo.world.evaluate", "--weights", str(weights), "--seed", str(HELD_OUT), "--json"]
    command += ["--worlds", str(worlds), "--frames", str(frames), "--modes", *MODES]
    say("steps")
    found = run_json(command, 3600)
    rows = [
        (row["mode"], row["steps"], row["persistence"], row["painted"], *(row["revisit"][lag][0] for lag in LAGS[:3]))
        for row in found["rollouts"]
    ]
    note = f"{worlds} worlds of {frames} frames."
    bench.add("steps", Table("Denoising steps", ("mode", "steps", *SCORED[:-1]), rows, (note,)))


SHAPES = {"one tall state": (1, 512, 32), "4 heads": (4, 128, 32), "8 heads": (8, 64, 32), "16 heads": (16, 32, 32)}


def capacity(bench: Bench, quick: bool) -> None:
    """What a state holds where codes are ideal: places seen on real walks, a random code for each."""
    frames = 40 if quick else 264
    walk = record([HELD_OUT], frames).pose[:, 0] // 2
    rows = []
    for kind in MEMORIES.names():
        for name, shape in SHAPES.items():
            right, seen, size = _recovered(kind, MemoryShape(*shape[:1], 64, *shape[1:], (64, shape[2])), walk)
            rows.append((kind, name, *shape, size, seen, right))
    columns = ("rule", "shape", "heads", "keys", "values", "bytes of state", "places", "share recovered")
    notes = (
        f"{frames} frames of 8 x 8 places on a torus of 24 x 24. Keys: whole-number frequencies of the place, drawn "
        "for each head; codes: 32 signs, the same in every head; what the heads hold is averaged. Recovered: at the "
        "end, of the codes of all places its own is nearest.",
    )
    bench.add("capacity", Table("Capacity", columns, rows, notes))


def _recovered(kind: str, shape: MemoryShape, walk: np.ndarray) -> tuple[float, int, int]:
    draw = torch.Generator().manual_seed(0)
    along = torch.arange(-11, 12)
    pairs = torch.cartesian_prod(along, along)
    pairs = pairs[(pairs[:, 0] > 0) | ((pairs[:, 0] == 0) & (pairs[:, 1] > 0))]
    chosen = torch.stack(
        [pairs[torch.randperm(len(pairs), generator=draw)[: shape.keys // 2]] for _ in range(shape.heads)]
    )
    places = torch.cartesian_prod(torch.arange(24), torch.arange(24)).float()
    turn = (places @ chosen.float().mT) * (2 * torch.pi / 24)  # [heads, 576, keys / 2]
    keys = torch.cat([turn.cos(), turn.sin()], dim=-1) / (shape.keys / 2) ** 0.5
    codes = torch.randint(0, 2, (576, shape.values), generator=draw).float() * 2 - 1
    rule = make_memory(kind, {})
    state = rule.empty(shape, torch.device("cpu"))
    seen: set[int] = set()
    for y, x in walk.tolist():
        rows, columns = (y + torch.arange(8)) % 24, (x + torch.arange(8)) % 24
        at = (rows[:, None] * 24 + columns).reshape(-1)
        seen |= set(at.tolist())
        values = codes[at].expand(shape.heads, -1, -1)
        state = rule.write(state, Writes(keys[:, at], values, torch.ones(shape.heads, 64)))
    known = torch.tensor(sorted(seen))
    held = rule.attend(state, keys[:, known]).mean(0)
    right = ((held @ codes.mT).argmax(-1) == known).float().mean().item()
    return right, len(seen), rule.state_bytes(shape)


def main() -> None:
    """Measure, print, write."""
    sections: dict[str, Callable[[Bench, bool], None]] = {
        "length": length, "score": score, "rules": rules, "steps": steps, "capacity": capacity
    }  # fmt: skip
    given: Options = options(
        "What does a context memory of constant size cost, and what does it remember?", list(sections)
    )
    bench = Bench("memory", "What does a memory of constant size cost, and what does it remember?", given, "1 per rank")
    for name, measure in sections.items():
        if given.wants(name):
            measure(bench, given.quick)
    bench.finish()


if __name__ == "__main__":
    main()
