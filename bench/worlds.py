"""Topologies of the embedded world for any context mode and number of steps, on one or two groups, as YAML files."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

__all__ = ["split_steps", "write_world"]


def split_steps(mode: str, steps: int, groups: int) -> list[list[int | str]]:
    """The passes of a frame (the steps, and the clean pass where the mode has one) in `groups` runs; the last is the
    longest. Fewer runs come back where there are fewer passes."""
    passes: list[int | str] = [*range(steps), *([] if mode == "matched" else ["clean"])]
    groups = min(groups, len(passes))
    size = len(passes) // groups
    cuts = [index * size for index in range(groups)] + [len(passes)]
    return [passes[low:high] for low, high in pairwise(cuts)]


def write_world(folder: Path, mode: str, steps: int, groups: int, via: str = "zmq", kv_layers: int = 1) -> Path:
    """Write a topology and return its path."""
    runs = split_steps(mode, steps, groups)
    names = [f"step{run[0]}" for run in runs]
    ender = next(name for name, run in zip(names, runs, strict=True) if steps - 1 in run)
    chain = ["source", *names[: names.index(ender) + 1], "decode", "sink"]
    edges: list[dict[str, Any]] = [{"from": a, "to": b, "via": via, "inflight": 2} for a, b in pairwise(chain)]
    if ender != names[-1]:
        edges.append({"from": ender, "to": names[-1], "via": via, "inflight": 2})
    if mode != "matched":
        writers = names[-1:] if mode == "clean" else names
        edges += [
            {"from": a, "to": b, "carries": "kv", "via": via, "inflight": 32, "layers": kv_layers}
            for a in writers
            for b in names[: names.index(a)]
        ]
    place = {name: f"g{index}" for index, name in enumerate(names)}
    stages: dict[str, Any] = {"source": {"kind": "source", "group": "g0"}, "sink": {"kind": "sink", "group": "g0"}}
    stages |= {
        name: {"kind": "denoise", "group": place[name], "steps": run} for name, run in zip(names, runs, strict=True)
    }
    stages["decode"] = {"kind": "decode", "group": place[ender]}
    topology = {
        "name": f"world-{mode}-{steps}-{len(runs)}",
        "model": {"steps": steps},
        "context": {"mode": mode},
        "groups": {f"g{index}": {"threads": 1} for index in range(len(runs))},
        "stages": stages,
        "edges": edges,
    }
    path = folder / f"{topology['name']}.yaml"
    path.write_text(yaml.safe_dump(topology, sort_keys=False))
    return path
