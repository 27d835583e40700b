"""Does a frame cost the same after ten thousand frames, in time and in memory?

    python bench/long.py [--frames 10000] [--only SECTION] [--quick] [--results DIR]

Runs three worlds with and without lateness and looks at every rank each time that another thousand frames are done: CPU
time (user and system) and resident memory. Flat means that the last thousand cost what the second did, within 5 %; the
first has the start in it. Lateness is a deadline of 1 ms, which no frame meets, under both policies that act on it.

A machine gets slower and faster within the minutes that this takes, by more than 5 %. So a fixed piece of work is timed
four times a second beside the run, and costs are given for a machine on which that work always takes what it took in
the median over the run.

`world-2-tiers` recalls frames, so its KV grows until every pose was seen. Its dram is 16 MiB here, which is full within
the first thousand frames; what comes after lies in nvme, whose file has room for all of it, and is no memory of the
ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import psutil
from harness import ROOT, Bench, BenchError, Options, Summary, Table, say

TIERS = {
    f"tiers.{group}.{key}": size
    for group in ("early", "late")
    for key, size in {"dram": "16MiB", "nvme.size": "2GiB"}.items()
}
WORLDS: dict[str, Mapping[str, str]] = {"world-1": {}, "world-2": {}, "world-2-tiers": TIERS}
LATE = {
    "in time": {},
    "fewer steps": {"deadline_ms": "1", "on_late": "fewer_steps"},
    "repeat": {"deadline_ms": "1", "on_late": "repeat"},
}
POLL_S = 0.02
CLOCK_S = 0.25
PIECES = 10
FLAT = 0.05


@dataclass
class Rank:
    """What one rank had used when so many frames were done."""

    cpu_s: dict[int, float] = field(default_factory=dict)
    rss_bytes: dict[int, int] = field(default_factory=dict)
    io_bytes: dict[int, int] = field(default_factory=dict)
    """Read from files and written to them"""
    slowness: dict[int, float] = field(default_factory=dict)
    """Of the machine in the frames before a mark: 1 is the median over the run"""

    def cpu_ms(self, mark: int, step: int) -> float:
        """CPU milliseconds for each of the frames before a mark, on a machine of constant speed: the median of
        `PIECES` parts, so that what else wakes up now and then is left out."""
        part = step // PIECES
        return median(
            1000 * (self.cpu_s[end] - self.cpu_s[end - part]) / part / self.slowness.get(end, 1.0)
            for end in range(mark - step + part, mark + 1, part)
        )

    def io_kib(self, mark: int, step: int) -> float:
        """KiB of files a frame, over the frames before a mark."""
        return (self.io_bytes[mark] - self.io_bytes[mark - step]) / step / 1024


class Speed:
    """How fast the machine is now and then: CPU time of a fixed piece of work, half of it Python and half products of
    matrices, as in a rank."""

    def __init__(self) -> None:
        self.times: list[tuple[int, float]] = []
        """The mark that comes next, and seconds"""
        self._matrix = np.ones((64, 64), dtype=np.float32)
        self._last_s = 0.0

    def look(self, mark: int) -> None:
        """Time the work, unless that was done in the last quarter of a second."""
        if time.monotonic() - self._last_s < CLOCK_S:
            return
        self._last_s = time.monotonic()
        start = time.thread_time()
        for _ in range(200):
            self._matrix @ self._matrix
        total = 0
        for number in range(20_000):
            total += number
        self.times.append((mark, time.thread_time() - start))

    def slowness(self) -> dict[int, float]:
        """By mark, against the median over all."""
        usual = median(seconds for _, seconds in self.times)
        marks = {mark for mark, _ in self.times}
        return {mark: median(s for other, s in self.times if other == mark) / usual for mark in marks}


def watch(world: str, sets: Mapping[str, str], frames: int, step: int) -> tuple[list[Rank], Summary]:
    """Run a world and look at its ranks each time that `step` more frames are done; gives them, and the JSON of the
    run. Raises `BenchError`."""
    with tempfile.TemporaryDirectory(prefix="l-") as folder:
        # Some frames more, so that the last mark is seen before the workers end.
        command = [str(Path(sys.executable).parent / "paceline"), "run", str(ROOT / "topologies" / f"{world}.yaml")]
        command += ["--frames", str(frames + step // 5), "--quiet", "--json"]
        command += [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
        with open(Path(folder) / "out", "wb") as out, open(Path(folder) / "log", "wb") as log:
            run = psutil.Popen(command, env={**os.environ, "TMPDIR": folder}, stdout=out, stderr=log)
            try:
                ranks = _looked_at(run, Path(folder), frames, step)
                code = run.wait(600)
            finally:
                if run.is_running():
                    run.terminate()
                    run.wait()
        if code != 0:
            raise BenchError(f"{' '.join(command)} ended with {code}: {(Path(folder) / 'log').read_text()[-2000:]}")
        summary: Summary = json.loads((Path(folder) / "out").read_text().splitlines()[-1])
    for rank in ranks:
        if len(rank.cpu_s) < PIECES * frames // step:
            raise BenchError(f"{world}: {len(rank.cpu_s)} of {PIECES * frames // step} marks were seen")
    return ranks, summary


def _looked_at(run: psutil.Popen, folder: Path, frames: int, step: int) -> list[Rank]:
    workers: dict[int, psutil.Process] = {}
    ranks: dict[int, Rank] = {}
    every, speed = step // PIECES, Speed()
    mark = every
    while run.poll() is None and mark <= frames:
        time.sleep(POLL_S)
        speed.look(mark)
        boards = list(folder.glob("paceline-*/progress"))
        if not boards:
            continue
        try:
            board = boards[0].read_bytes()
        except OSError:
            continue
        world_size = len(board) // 16
        if len(workers) < world_size:
            workers = {
                int(file.stem.removeprefix("rank-")): psutil.Process(int(file.read_text()))
                for file in boards[0].parent.glob("rank-*.pid")
            }
            continue
        # The leader counts frames that were shown; it is the first rank in all of these worlds.
        if int.from_bytes(board[:8], "little") < mark:
            continue
        for number, worker in sorted(workers.items()):
            times = worker.cpu_times()
            rank = ranks.setdefault(number, Rank())
            rank.cpu_s[mark] = times.user + times.system
            rank.rss_bytes[mark] = worker.memory_info().rss
            files = worker.io_counters()
            rank.io_bytes[mark] = files.read_chars + files.write_chars
        mark += every
    for rank in ranks.values():
        rank.slowness = speed.slowness()
    return [rank for _, rank in sorted(ranks.items())]


def table_of(world: str, found: Mapping[str, Sequence[Rank]], frames: int, step: int) -> Table:
    """A row for each rank and kind of lateness: the second thousand, the last, and what lies between."""
    rows = []
    for late, ranks in found.items():
        for number, rank in enumerate(ranks):
            second, last = (rank.cpu_ms(mark, step) for mark in (2 * step, frames))
            middle = [rank.cpu_ms(mark, step) for mark in range(2 * step, frames + 1, step)]
            files = [rank.io_kib(mark, step) for mark in (2 * step, frames)]
            rss = [rank.rss_bytes[mark] / 2**20 for mark in (2 * step, frames)]
            flat = last <= second * (1 + FLAT) and rss[1] <= rss[0] * (1 + FLAT)
            cost, memory = (second, last, last / second, max(middle)), (*rss, rss[1] / rss[0])
            rows.append((late, number, *cost, *memory, *files, "yes" if flat else "no"))
    return Table(
        f"{world}, {frames} frames",
        (
            "late", "rank", f"ms/frame to {2 * step}", f"ms/frame to {frames}", "ratio", "most",
            f"MiB at {2 * step}", f"MiB at {frames}", "ratio ", "KiB/frame", "KiB/frame ", "flat",
        ),
        rows,
        notes=(
            f"CPU milliseconds of a rank a frame, medians of {PIECES} parts of {step} frames, on a machine of the "
            "speed that this one had in the median over the run; flat: both ratios below 1.05. KiB/frame: read from "
            f"files and written to them, to {2 * step} and to {frames}.",
        ),
    )  # fmt: skip


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--only", action="append", choices=list(WORLDS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--results", type=Path, default=None)
    given = parser.parse_args()
    frames = 1000 if given.quick else given.frames
    step = frames // 10
    partial = given.quick or given.only
    results = given.results or ROOT / ("out/bench" if partial else "bench/results")
    chosen = Options(given.quick, tuple(given.only or ()), results)
    question = "Does a frame cost the same after ten thousand frames?"
    bench = Bench("long", question, chosen, threads="as in each topology")
    for world, sets in WORLDS.items():
        if not chosen.wants(world):
            continue
        found = {}
        for late, how in LATE.items():
            say(f"{world}, {late}")
            found[late], _ = watch(world, {**sets, **how}, frames, step)
            for number, rank in enumerate(found[late]):
                costs = (f"{rank.cpu_ms(mark, step):.1f}" for mark in range(2 * step, frames + 1, step))
                say(f"  rank {number}, CPU ms a frame: {' '.join(costs)}")
        raw = {late: [asdict(rank) for rank in ranks] for late, ranks in found.items()}
        bench.add(world, table_of(world, found, frames, step), ranks=raw)
    bench.finish()


if __name__ == "__main__":
    main()
