"""How long does a user wait for the first error, the first frame and the first token?

    python bench/start_up.py [--quick] [--results DIR]

Each command is a fresh process, from its start to its end; it ends as soon as there is something to see. CPU time is
that of the command and all processes that it started.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from statistics import median

from harness import ROOT, Bench, BenchError, Table, options, say

WORLD, LANGUAGE = (str(ROOT / "topologies" / f"{name}.yaml") for name in ("world-2", "speculate-2"))
BARE = "import torch, transformers, transformers.models.llama.modeling_llama"
COMMANDS: dict[str, tuple[int, list[str]]] = {
    "error: no such topology": (2, ["run", "none.yaml"]),
    "error: no such model": (2, ["generate", LANGUAGE, "--prompt", "x", "--set", "model.target=none"]),
    "error: prompt too long": (2, ["generate", LANGUAGE, "--prompt", "x", "--max-tokens", "999999"]),
    "first frame of world-2": (0, ["run", WORLD, "--frames", "1", "--quiet"]),
    "first token of speculate-2": (0, ["generate", LANGUAGE, "--prompt", "def", "--max-tokens", "1", "--quiet"]),
}


def timed(command: list[str], code: int) -> tuple[float, float]:
    """Seconds by the clock and of CPU time. Raises `BenchError` where it ends otherwise."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    wall = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != code:
        raise BenchError(f"{' '.join(command)} ended with {done.returncode}, not {code}: {done.stderr[-2000:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure, print, write."""
    chosen = options(__doc__ or "")
    bench = Bench("start_up", "How long does a user wait for the first thing to see?", chosen, threads="one a rank")
    runs = 1 if chosen.quick else 7
    paceline = [sys.executable, "-P", "-c", "from paceline.launch.cli import main; main()"]
    commands = {"imports of torch and Transformers alone": (0, [sys.executable, "-c", BARE])}
    commands |= {what: (code, [*paceline, *rest]) for what, (code, rest) in COMMANDS.items()}
    found: dict[str, list[tuple[float, float]]] = {what: [] for what in commands}
    # In turns, so that a slow minute of the machine is everybody's.
    for number in range(runs):
        say(f"round {number + 1} of {runs}")
        for what, (code, command) in commands.items():
            found[what].append(timed(command, code))
    rows = []
    for what, times in found.items():
        walls, cpus = zip(*times, strict=True)
        rows.append((what, median(walls), min(walls), median(cpus)))
    table = Table(
        "Seconds from the start of a command to its end",
        ("what is seen", "median", "least", "CPU, median"),
        rows,
        notes=(f"{runs} runs of each, in turns.",),
    )
    bench.add("commands", table)
    bench.finish()


if __name__ == "__main__":
    main()
