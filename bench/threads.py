"""What does waiting cost two threads a rank, with the machine to themselves and beside a busy process?

    python bench/threads.py [--quick] [--results DIR]

`world-1` computes on one rank with two threads. A thread that has done its part of an operation spins until the others
have done theirs (`active`), spins for some milliseconds and then sleeps (`default`, what OpenMP does unless told),
or sleeps (`passive`, what Paceline asks for). Beside it nothing runs, or a process that only counts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from harness import ROOT, Bench, BenchError, Table, median_of, options, repeat, run_cli

WORLD_1 = ROOT / "topologies" / "world-1.yaml"
POLICIES = {
    "active": {"OMP_WAIT_POLICY": "active", "KMP_BLOCKTIME": "infinite"},
    # GNU's OpenMP takes this count where OMP_WAIT_POLICY is not set; LLVM's waits for 200 ms.
    "default": {"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200"},
    "passive": {},
}
VARIABLES = ("OMP_WAIT_POLICY", "KMP_BLOCKTIME", "GOMP_SPINCOUNT")
TIMEOUT_S = 25.0


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that take what of a core they can get."""
    counting = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in counting:
            process.kill()
            process.wait()


def frames_per_second(policy: str, beside: int, frames: int, runs: int) -> float:
    """Median over some runs; 0 where one does not end in time."""
    before = {name: os.environ.pop(name, None) for name in VARIABLES}
    os.environ.update(POLICIES[policy])
    try:
        with busy(beside):
            found = repeat(runs, lambda: run_cli(WORLD_1, frames=frames, timeout_s=TIMEOUT_S))
        return median_of(found, "frames_per_second")
    except (BenchError, subprocess.TimeoutExpired):
        return 0.0
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def main() -> None:
    """Measure, print, write."""
    chosen = options(__doc__ or "")
    bench = Bench("threads", "What does waiting cost two threads a rank?", chosen, threads="2 on one rank")
    frames, runs = (30, 1) if chosen.quick else (150, 3)
    rows = []
    for beside in (0, 1):
        found = {policy: frames_per_second(policy, beside, frames, runs) for policy in POLICIES}
        usual = found["default"]
        rows.append((beside, *found.values(), found["passive"] / usual if usual else None))
    table = Table(
        "Frames per second of world-1, two threads on two cores",
        ("busy processes beside it", *POLICIES, "passive / default"),
        rows,
        notes=(
            f"Medians of {runs} runs of {frames} frames; 0: not done within {TIMEOUT_S:g} s.",
            "`active` is OMP_WAIT_POLICY=active, `default` OpenMP's own choice, `passive` what Paceline sets unless "
            "the environment says otherwise.",
        ),
    )
    bench.add("waiting", table)
    bench.finish()


if __name__ == "__main__":
    main()
