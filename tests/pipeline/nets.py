"""Topologies for the tests, made in code: worlds with any partition of steps over stages, and chains of sleepers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from paceline.pipeline.program import ModelShape
from paceline.pipeline.stage import CLEAN
from paceline.pipeline.topology import ContextMode, Schedule, SleepTopology, WorldTopology

__all__ = ["SHAPE", "contiguous", "sleepers", "world"]

SHAPE = ModelShape(layers=4, latent_bytes=1000, kv_layer_bytes=10_000, frame_bytes=3000)


def contiguous(steps: int, cuts: Sequence[int]) -> list[list[int | str]]:
    """Steps 0..steps-1 and the clean pass, cut before each of `cuts` (1..steps; `steps` puts the clean pass apart)."""
    everything: list[int | str] = [*range(steps), CLEAN]
    bounds = [0, *sorted(set(cuts)), steps + 1]
    return [everything[a:b] for a, b in pairwise(bounds)]


def world(
    partition: Sequence[Sequence[int | str]],
    *,
    mode: ContextMode | str = ContextMode.cascade,
    ms: Sequence[float] | None = None,
    inflight: int | None = None,
    window: int = 3,
    sinks: int = 1,
    prompt: int = 2,
    recall: int = 0,
    memory: bool = False,
    schedule: Schedule | str = Schedule.wavefront,
    via: str = "dist",
    ranks: int = 1,
    layers: Sequence[int] = (1,),
    extra: dict[str, Any] | None = None,
) -> WorldTopology:
    """A world with one stage and one group for each part; source, decode and sink on a group `io`."""
    last = len([step for part in partition for step in part if step != CLEAN])
    names = [f"step{part[0]}" for part in partition]
    placed = dict(zip(names, partition, strict=True))
    context: dict[str, Any] = {"mode": mode, "window": window, "sinks": sinks, "prompt": prompt, "recall": recall}
    if memory:
        context["memory"] = {"kind": "test"}
    limits = {} if inflight is None else {"inflight": inflight}
    stages: dict[str, Any] = {"source": {"kind": "source", "group": "io"}}
    for index, (name, part) in enumerate(placed.items()):
        cost = 0.0 if ms is None else ms[index]
        stages[name] = {"kind": "denoise", "group": f"g{index}", "steps": list(part), "ms": cost}
    stages |= {"decode": {"kind": "decode", "group": "io"}, "sink": {"kind": "sink", "group": "io"}}
    main = [name for name, part in placed.items() if list(part) != [CLEAN]]
    path = ["source", *main, "decode", "sink"]
    edges: list[dict[str, Any]] = [{"from": a, "to": b, "via": via} for a, b in pairwise(path)]
    edges[-1]["via"] = "local"
    edges += [{"from": main[-1], "to": name, "via": via} for name in names if name not in main]
    if memory and main[-1] != names[0]:
        edges.append({"from": main[-1], "to": names[0], "carries": "latent", "via": via})
    for place, writer in enumerate(names):
        for reader in names:
            earlier = reader in names[:place]
            if reader == writer or mode == "matched" or not (earlier or (mode == "clean" and CLEAN in placed[writer])):
                continue
            if mode == "clean" and CLEAN not in placed[writer]:
                continue
            run = layers[len(edges) % len(layers)]
            edges.append({"from": writer, "to": reader, "carries": "kv", "via": via, "layers": run})
    return WorldTopology.model_validate(
        {
            "name": "net",
            "schedule": schedule,
            "deterministic": schedule != "batched",
            "model": {"steps": last},
            "context": context,
            "groups": {"io": {}, **{f"g{index}": {"ranks": ranks} for index in range(len(names))}},
            "stages": stages,
            "edges": [{**edge, **limits} for edge in edges],
            **(extra or {}),
        }
    )


def sleepers(ms: Sequence[float], *, schedule: str = "wavefront", inflight: int = 2, via: str = "zmq") -> SleepTopology:
    """A chain of sleeping stages, a rank for each, between source and sink on the first rank."""
    names = [f"s{index}" for index in range(len(ms))]
    path = ["source", *names, "sink"]
    stages: dict[str, Any] = {
        name: {"kind": "sleep", "group": f"g{index}", "ms": cost}
        for index, (name, cost) in enumerate(zip(names, ms, strict=True))
    }
    return SleepTopology.model_validate(
        {
            "name": "sleepers",
            "workload": "sleep",
            "schedule": schedule,
            "groups": {f"g{index}": {} for index in range(len(ms))},
            "stages": {
                "source": {"kind": "source", "group": "g0"},
                **stages,
                "sink": {"kind": "sink", "group": "g0"},
            },
            "edges": [{"from": a, "to": b, "via": via, "inflight": inflight} for a, b in pairwise(path)],
        }
    )
