"""`python -m paceline.launch.worker_main RUN_DIR`: one rank of a run that a supervisor on this machine started.

A supervisor that can fork its workers calls `work` in them.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec

from paceline.launch.failure import Failure
from paceline.launch.files import write_bytes
from paceline.launch.process import PARENT_VARIABLE
from paceline.launch.run_dir import ProgressWriter, RunDirPaths
from paceline.launch.spec_file import read_spec
from paceline.launch.workload import Workload, workload_of

__all__ = ["STACKS_SIGNAL", "STORE_VARIABLE", "die_with_parent", "main", "work"]

STORE_VARIABLE = "PACELINE_STORE_FD"
"""File descriptor of the listening socket on which rank 0 serves the rendezvous store. The supervisor has bound it, so
that no other process can take the port in between."""

STACKS_SIGNAL = signal.SIGUSR1
"""Makes a worker write the stacks of its threads to its log, even where its interpreter hangs."""

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill this process when its supervisor ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have ended before the call above.
    if os.getppid() != int(os.environ[PARENT_VARIABLE]):
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Run the rank that the environment names, of the run whose folder is the first argument."""
    work(Path(sys.argv[1]))


def work(folder: Path, workload: Workload[Any] | None = None) -> None:
    """Run the rank that the environment names; leave a result, or an account of the failure and exit code 1. A forked
    worker has the `workload`; any other reads its spec from the folder."""
    die_with_parent()
    faulthandler.enable()
    faulthandler.register(STACKS_SIGNAL)
    paths = RunDirPaths(folder)
    rank = int(os.environ["RANK"])
    try:
        _run(paths, rank, workload or workload_of(read_spec(paths.spec)))
    except BaseException as error:
        failure = Failure.of(rank, error)
        failure.write(paths.path)
        print(failure.traceback, file=sys.stderr, flush=True)
        # Threads of transports may still wait for ranks that are gone; a worker that is wrong dies.
        os._exit(1)


def _run(paths: RunDirPaths, rank: int, workload: Workload[Any]) -> None:
    progress = ProgressWriter(paths.progress, rank)
    if workload.serial:
        result = workload.work_serially(paths, progress)
    else:
        store = _serve_store()
        result = workload.work(rank, int(os.environ["WORLD_SIZE"]), paths, progress)
        del store
    if result is not None:
        write_bytes(paths.result, msgspec.msgpack.encode(result))


def _serve_store() -> object:
    """On the rank that was given a socket: serve the store there until the result is dropped."""
    # A variable of that name that the user has is no socket of this run's.
    if os.environ["RANK"] != "0" or STORE_VARIABLE not in os.environ:
        return None
    import torch.distributed as dist

    listener = socket.socket(fileno=int(os.environ.pop(STORE_VARIABLE)))
    host, port = listener.getsockname()
    store = dist.TCPStore(  # type: ignore[attr-defined]
        host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )
    # As under torchrun: the store is there already, and every rank is its client.
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    return store


if __name__ == "__main__":
    main()
