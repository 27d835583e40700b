"""How fast are the nvme tier's reads and writes? Beside plain reads of the same size and depth, and beside fio if it is
installed; with checksums, copies and all.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from harness import Bench, Table, options, say

from paceline.tiers.layout import Layout
from paceline.tiers.nvme import Parts, Store
from paceline.tiers.store_file import fingerprint

THREADS = 4
ROUNDS = 5
SIZES = (64 << 10, 256 << 10, 1 << 20)
"""Bytes of a block: 16 tokens of one layer of Llama-3-8B in bfloat16 are 64 KiB."""


def rate(call: Callable[[], None], nbytes: int) -> float:
    """Bytes per second."""
    began = time.perf_counter()
    call()
    return nbytes / (time.perf_counter() - began)


def plain(store: Store, slots: Sequence[int], write: bool) -> None:
    """The same slots, each by a call of its own, on as many threads; nothing is checked or copied."""
    flags = os.O_RDWR | (os.O_DIRECT if store.direct else 0)
    descriptor = os.open(store.open_path, flags)
    move = os.pwritev if write else os.preadv
    buffers = [mmap.mmap(-1, store.stride) for _ in range(THREADS)]

    def work(number: int) -> None:
        for slot in slots[number::THREADS]:
            move(descriptor, [buffers[number]], 4096 + slot * store.stride)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    os.close(descriptor)


def fio(folder: Path, size: int, total: int, direct: bool, kind: str) -> float | None:
    """What fio gets, bytes per second; None where it is not installed."""
    program = shutil.which("fio")
    if program is None:
        return None
    done = subprocess.run(
        [program, "--name=kv", f"--directory={folder}", f"--rw={kind}", f"--bs={size}", f"--size={total // THREADS}",
         f"--numjobs={THREADS}", "--ioengine=psync", f"--direct={int(direct)}", "--group_reporting",
         "--output-format=json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    job = json.loads(done.stdout)["jobs"][0]
    return float(job["read" if "read" in kind else "write"]["bw_bytes"])


def measure(bench: Bench, folder: Path) -> None:
    """Reads and writes of slots in a random order, and of neighbours, by size of a block."""
    total = (32 << 20) if bench.options.quick else (512 << 20)
    rows: list[tuple[str | float | None, ...]] = []
    # As in a run: one arena, whose pages have all been touched.
    arena = np.ones(total, dtype=np.uint8)
    for size in SIZES:
        say(f"blocks of {size >> 10} KiB")
        layout = Layout(1, 8, 16, size // 2 // 8 // 16 // 2, torch.bfloat16)
        count = total // size
        store = Store(folder, fingerprint(layout), layout.block_nbytes, count, threads=THREADS)
        data = np.random.Generator(np.random.Philox(1)).integers(0, 256, size, dtype=np.uint8)
        parts: list[Parts] = [(data[: size // 2], data[size // 2 :])] * count
        halves = arena.reshape(count, 2, size // 2)
        targets: list[Parts] = [(keys, values) for keys, values in halves]
        store.write(np.arange(count), parts)
        for order in ("random", "neighbours"):
            slots = np.arange(count)
            if order == "random":
                # Every second one, so that none has a neighbour to go with.
                slots = np.random.Generator(np.random.Philox(2)).permutation(count // 2) * 2
            moved = len(slots) * size
            # The last of the plain rounds writes zeros, so reads of ours come before.
            found: dict[str, list[float]] = {"read": [], "plain read": [], "write": [], "plain write": []}
            for _ in range(1 if bench.options.quick else ROUNDS):
                found["write"].append(rate(lambda: _all(store.write(slots, parts)), moved))  # noqa: B023
                found["plain read"].append(rate(lambda: plain(store, slots.tolist(), False), moved))  # noqa: B023
                found["read"].append(rate(lambda: _all(store.read(slots, targets)), moved))  # noqa: B023
                found["plain write"].append(rate(lambda: plain(store, slots.tolist(), True), moved))  # noqa: B023
                for kind in ("read", "write"):
                    peer = fio(folder, size, total, store.direct, f"rand{kind}" if order == "random" else kind)
                    found.setdefault(f"fio {kind}", []).extend([] if peer is None else [peer])
            middle = {name: float(np.median(rates)) / 1e6 for name, rates in found.items() if rates}
            for kind in ("read", "write"):
                peer = middle.get(f"fio {kind}")
                rows.append(
                    (f"{size >> 10} KiB", order, kind, middle[kind], middle[f"plain {kind}"],
                     middle[kind] / middle[f"plain {kind}"], peer, None if peer is None else middle[kind] / peer)
                )  # fmt: skip
        direct = store.direct
        store.close()
    columns = ("block", "order", "kind", "MB/s", "plain MB/s", "of plain", "fio MB/s", "of fio")
    notes = (
        f"A file of {total >> 20} MiB, {THREADS} threads, {'O_DIRECT' if direct else 'through the page cache'}. "
        "Random: every second block, in any order. Ours joins neighbours up to 1 MiB, copies, and makes or checks a "
        "CRC-32C for each block; plain does one call for each block and nothing else. Medians of alternating rounds.",
        "fio: psync, the same block size, threads and order; empty where it is not installed.",
    )
    bench.add("throughput", Table("Throughput of the nvme tier", columns, rows, notes))


def _all(failures: dict[int, object]) -> None:
    if failures:
        raise SystemExit(f"{len(failures)} blocks failed, the first: {next(iter(failures.values()))}")


def main() -> None:
    """Measure in a folder beside the results, so that it is a disk and no tmpfs."""
    bench = Bench("nvme", "How fast is the nvme tier?", options(__doc__ or "", ("throughput",)), f"{THREADS} for I/O")
    bench.options.results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=bench.options.results) as folder:
        measure(bench, Path(folder))
    bench.finish()


if __name__ == "__main__":
    main()
