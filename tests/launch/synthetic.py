"""Runs that never happened: results as the leader would put them together, with times from a simple recurrence."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from paceline.pipeline.topology import FrameTopology, SleepTopology, WorldTopology
from paceline.runtime.result import Decision, Event, FrameTime, RankReport, RunResult, SessionResult
from paceline.runtime.spec import RunSpec

LAYERS = 6
PROMPT = 4


def chain_spec(
    ranks: int, sessions: int = 1, frames: int = 60, *, mirrored: bool = False, workload: str = "world",
    deadline_ms: float | None = None,
) -> RunSpec:  # fmt: skip
    """One step a rank, the clean pass on the last one; decoder and client on rank 0."""
    world = workload == "world"
    kind = "denoise" if world else "sleep"
    stages: dict[str, dict[str, object]] = {f"step{r}": {"kind": kind, "group": f"g{r}"} for r in range(ranks)}
    for rank in range(ranks if world else 0):
        stages[f"step{rank}"]["steps"] = [rank, "clean"] if rank == ranks - 1 else [rank]
    names = ["source", *stages, *(["decode"] if world else []), "sink"]
    ends = {"source": {"kind": "source", "group": "g0"}, "sink": {"kind": "sink", "group": "g0"}}
    if world:
        ends["decode"] = {"kind": "decode", "group": "g0"}
    model: type[FrameTopology] = WorldTopology if world else SleepTopology
    topology = model.model_validate(
        {
            "name": f"{workload}-{ranks}",
            "workload": workload,
            "schedule": "mirrored" if mirrored else "wavefront",
            **({"model": {"steps": min(ranks, 64)}, "context": {"mode": "cascade", "prompt": PROMPT}} if world else {}),
            "groups": {f"g{rank}": {} for rank in range(ranks)},
            "stages": {"source": ends.pop("source"), **stages, **ends},
            "edges": [{"from": a, "to": b, "via": "zmq"} for a, b in pairwise(names)],
            "deadline_ms": deadline_ms,
        }
    )
    return RunSpec(topology, frames, sessions, seed=7)


def run(spec: RunSpec, unit_ms: float = 1.2, hop_ms: float = 0.4, jitter: float = 0.15) -> RunResult:
    """Layer l of pass (T, s) follows layer l - 1, its rank's last unit, and layer l of (T - 1, s + 1), one hop away."""
    clock = _Clock(np.random.default_rng(3), hop_ms / 1e3, unit_ms / 1e3, jitter)
    topology, world = spec.topology, spec.topology.workload == "world"
    ranks = topology.world_size
    last = ranks if world else ranks - 1  # the clean pass is one more step on the last rank
    prompt = PROMPT if world else 0
    layers = LAYERS if world else 1
    times = []

    def rank_of(session: int, step: int) -> int:
        rank = min(step, ranks - 1)
        return ranks - 1 - rank if topology.schedule == "mirrored" and session % 2 else rank

    order = [
        (frame + step, -step, session, frame)
        for session in range(spec.sessions)
        for frame in range(prompt, prompt + spec.frames)
        for step in range(last + 1)
    ]
    for session in range(spec.sessions):
        for frame in range(prompt):
            for step in range(ranks):
                clock.unit(rank_of(session, step), f"step{step}", session, "prefill", frame, topology.last_level, 0)
    for _, minus, session, frame in sorted(order):
        step = -minus
        rank, stage = rank_of(session, step), f"step{min(step, ranks - 1)}"
        if step == 0:
            before = clock.done.get((session, frame - 2, 0, layers - 1), 0.0)
            clock.done[session, frame, -1, 0] = clock.unit(0, "source", session, "emit", frame, -1, 0, before, 0.02)
            clock.unit(rank, stage, session, "receive", frame, -1, 0, clock.done[session, frame, -1, 0], 0.02)
        latent = clock.done.get((session, frame, step - 1, layers - 1 if step else 0), 0.0)
        for layer in range(layers):
            ahead = clock.done.get((session, frame - 1, step + 1, layer), 0.0) if world else 0.0
            kind = "layers" if world else "sleep"
            after = max(latent, ahead)
            end = clock.unit(rank, stage, session, kind, frame, step if world else -1, layer, after, hop=True)
            clock.done[session, frame, step, layer] = end
        if step == ranks - 1:
            shown = clock.done[session, frame, step, layers - 1]
            if world:
                shown = clock.unit(0, "decode", session, "decode", frame, -1, 0, shown, 1.5, hop=True)
            shown = clock.unit(0, "sink", session, "show", frame, -1, 0, shown, 0.02)
            emitted = clock.done[session, frame, -1, 0]
            due = float("nan")
            if topology.deadline_ms is not None:
                due = 0.08 + (frame - prompt) * topology.deadline_ms / 1e3
            times.append(FrameTime(session, frame - prompt, emitted, shown, due))
    decisions = [Decision(0, 9, "fewer_steps", 1)] if topology.deadline_ms else []
    results = [
        SessionResult(session, spec.frames, hashlib.sha256(bytes([session])).hexdigest(), 0, [32, 32, 3])
        for session in range(spec.sessions)
    ]
    wall = max(time.shown_s for time in times)
    return RunResult(results, wall, [_report(clock.events, rank, wall) for rank in range(ranks)], times, decisions)


class _Clock:
    def __init__(self, random: np.random.Generator, hop_s: float, unit_s: float, jitter: float) -> None:
        self.random, self.hop_s, self.unit_s, self.jitter = random, hop_s, unit_s, jitter
        self.free: dict[int, float] = {}
        self.done: dict[tuple[int, int, int, int], float] = {}
        self.events: list[Event] = []

    def unit(
        self, rank: int, stage: str, session: int, kind: str, frame: int, step: int, layer: int, after_s: float = 0.0,
        cost: float = 1.0, *, hop: bool = False,
    ) -> float:  # fmt: skip
        """Run one unit, and a wait before it where its rank was idle; returns when it ended."""
        free = self.free.get(rank, 0.0)
        start = max(free, after_s + (self.hop_s if hop and after_s > free else 0.0))
        if start > free:
            self.events.append(Event(rank, stage, session, "wait", frame, step, layer, free, start))
        end = start + self.unit_s * cost * float(1 + self.jitter * self.random.exponential())
        self.events.append(Event(rank, stage, session, kind, frame, step, layer, start, end))
        self.free[rank] = end
        return end


def _report(events: Iterable[Event], rank: int, wall_s: float) -> RankReport:
    own = [event for event in events if event.rank == rank]
    busy = sum(event.end_s - event.start_s for event in own if event.kind != "wait")
    stages = sorted({event.stage for event in own})
    return RankReport(
        rank=rank, group=f"g{rank}", host="here", pid=1000 + rank, device="cpu", threads=1, stages=stages, busy_s=busy,
        wall_s=wall_s, stage_ms={}, peak_rss_bytes=1 << 28, sessions=[],
        edges=[], kv_sha256={}, events=own,
    )  # fmt: skip


def movie(frames: int, seed: int, size: int = 32) -> npt.NDArray[np.uint8]:
    """A picture of coloured tiles that pans `[T, size, size, 3]`."""
    tiles = np.random.default_rng(seed).integers(40, 255, (24, 24, 3), dtype=np.uint8)
    ground = tiles.repeat(4, 0).repeat(4, 1)
    return np.stack([np.roll(ground, (-frame, -2 * frame), (0, 1))[:size, :size] for frame in range(frames)])
