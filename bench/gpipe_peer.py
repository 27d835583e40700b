"""The sleeping stages of a Paceline run through `torch.distributed.pipelining`: PipelineStage and ScheduleGPipe, eval.

    python bench/gpipe_peer.py --ms 10,10,10,10 --ms 10,15,25,30 --microbatches 4 16 64 --items 64 --repeats 3

One process per stage, gloo, no gradients. Each `step` of the schedule takes a batch of as many items as there are
microbatches, so a microbatch is an item, and batches follow one another until all items are through. The last line on
standard output is JSON: for each pipeline, microbatch count and repeat `items_per_second` (from the first stage's first
start to the last stage's last end), `period_ms` (steady, by the same estimator as `paceline run`) and `latency_ms`
(median from an item's start on the first stage to its end on the last). All ranks read one monotonic clock.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

from paceline.pipeline.steady import steady_period
from paceline.stages.relay import spend

__all__ = ["main"]


class Sleeper(nn.Module):
    """What Paceline's sleep stage does: waits, and adds one. Notes when."""

    def __init__(self) -> None:
        super().__init__()
        self.ms = 0.0
        self.spans: list[tuple[float, float]] = []

    def forward(self, x: Tensor) -> Tensor:
        """`[1, bytes]` to the same."""
        start = time.monotonic()
        begin = time.perf_counter()
        y = x + 1
        spend(self.ms, begin)
        self.spans.append((start, time.monotonic()))
        return y


def _run(sleeper: Sleeper, rank: int, world: int, ms: float, microbatches: int, items: int, nbytes: int) -> None:
    """Send all items through; `sleeper.spans` says when each was here."""
    stage = PipelineStage(sleeper.eval(), rank, world, torch.device("cpu"))
    schedule = ScheduleGPipe(stage, microbatches)
    batch = (torch.zeros(microbatches, nbytes // 4, dtype=torch.float32),) if rank == 0 else ()
    with torch.no_grad():
        sleeper.ms = 0.0
        schedule.eval(*batch)  # exchanges shapes
        sleeper.ms = ms
        dist.barrier()
        sleeper.spans.clear()
        for _ in range(items // microbatches):
            schedule.eval(*batch)
    dist.barrier()


def _collect(spans: Sequence[tuple[float, float]], rank: int, world: int) -> dict[str, float] | None:
    """On rank 0: what the run was."""
    mine = torch.tensor(spans, dtype=torch.float64)
    last = torch.empty_like(mine)
    if rank == world - 1:
        dist.send(mine, 0)
    if rank != 0:
        return None
    if world > 1:
        dist.recv(last, world - 1)
    starts, ends = mine[:, 0].tolist(), last[:, 1].tolist()
    latency = statistics.median(end - start for start, end in zip(starts, ends, strict=True))
    return {
        "items_per_second": len(ends) / (ends[-1] - starts[0]),
        "period_ms": steady_period(ends) * 1e3,
        "latency_ms": latency * 1e3,
    }


def _rank(rank: int, world: int, folder: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    runs = []
    for _ in range(given.repeats):
        for ms in given.ms:
            for microbatches in given.microbatches:
                sleeper = Sleeper()
                _run(sleeper, rank, world, ms[rank], microbatches, given.items, given.item_bytes)
                figures = _collect(sleeper.spans, rank, world)
                runs.append({"ms": ms, "microbatches": microbatches, **(figures or {})})
    dist.barrier()
    dist.destroy_process_group()
    return runs


def _milliseconds(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def main() -> None:
    """Run the peer as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ms", type=_milliseconds, action="append", metavar="MS,MS,...", help="stages; repeatable")
    parser.add_argument("--microbatches", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--items", type=int, default=32)
    parser.add_argument("--item-bytes", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    given.ms = given.ms or [[10.0, 10.0]]
    world = len(given.ms[0])
    if world < 2 or any(len(ms) != world for ms in given.ms):
        parser.error("every --ms needs the same number of stages, 2 or more")
    if any(given.items % count for count in given.microbatches):
        parser.error("--items must be a multiple of every microbatch count")
    with tempfile.TemporaryDirectory() as folder:
        spawn = multiprocessing.get_context("spawn")
        peers = [
            spawn.Process(target=_rank, args=(rank, world, folder, given), daemon=True) for rank in range(1, world)
        ]
        for peer in peers:
            peer.start()
        runs = _rank(0, world, folder, given)
        for peer in peers:
            peer.join(10)
    print(json.dumps({"runs": runs}))


if __name__ == "__main__":
    main()
