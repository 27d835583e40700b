"""What a hop costs without Paceline: two bare processes that bounce bytes, by a ZMQ ipc socket or by gloo.

    python bench/raw_hops.py zmq 4096 --count 200 --every-ms 4

The last line on standard output is JSON: `hop_us`, half of a round trip, as the median over all. With `--every-ms` a
round trip begins every so often, as items come in a paced pipeline; without it they follow one another.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable

__all__ = ["main"]

_WARM = 20


def _measure(bounce: Callable[[], None], count: int, every_s: float) -> list[float]:
    """Seconds of each round trip."""
    took = []
    due = time.monotonic()
    for _ in range(count):
        due = max(due + every_s, time.monotonic()) if every_s else 0.0
        time.sleep(max(0.0, due - time.monotonic()))
        start = time.monotonic()
        bounce()
        took.append(time.monotonic() - start)
    return took


def _zmq(rank: int, folder: str, nbytes: int, count: int, every_s: float) -> list[float]:
    import zmq

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.PAIR)
    try:
        if rank == 1:
            socket.connect(f"ipc://{folder}/raw")
            for _ in range(count + _WARM):
                socket.send(socket.recv(copy=False), copy=False)
            socket.recv()
            return []
        socket.bind(f"ipc://{folder}/raw")
        payload = bytes(nbytes)

        def bounce() -> None:
            socket.send(payload, copy=False)
            socket.recv(copy=False)

        _measure(bounce, _WARM, 0.0)
        took = _measure(bounce, count, every_s)
        socket.send(b"")
        return took
    finally:
        socket.close(linger=1000)
        context.term()


def _gloo(rank: int, folder: str, nbytes: int, count: int, every_s: float) -> list[float]:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    tensor = torch.zeros(nbytes, dtype=torch.uint8)

    def bounce() -> None:
        if rank == 0:
            dist.send(tensor, 1)
            dist.recv(tensor, 1)
        else:
            dist.recv(tensor, 0)
            dist.send(tensor, 0)

    _measure(bounce, _WARM, 0.0)
    took = _measure(bounce, count, every_s if rank == 0 else 0.0)
    dist.barrier()
    dist.destroy_process_group()
    return took


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("transport", choices=("zmq", "dist"), nargs="?", default="zmq")
    parser.add_argument("nbytes", type=int, nargs="?", default=4096)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--every-ms", type=float, default=0.0)
    given = parser.parse_args()
    bounce = _zmq if given.transport == "zmq" else _gloo
    with tempfile.TemporaryDirectory() as folder:
        shared = (folder, given.nbytes, given.count, given.every_ms / 1000)
        peer = multiprocessing.get_context("spawn").Process(target=bounce, args=(1, *shared), daemon=True)
        peer.start()
        took = bounce(0, *shared)
        peer.join(10)
    print(json.dumps({"hop_us": statistics.median(took) / 2 * 1e6, "count": len(took)}))


if __name__ == "__main__":
    main()
