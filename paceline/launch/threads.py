"""How math libraries use threads; they read it from the environment when they are loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping

__all__ = ["thread_environment"]

_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_WAITING = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
"""By the OpenMP runtime, GNU's (torch's wheels) and LLVM's or Intel's. A thread that spins at the end of a parallel
region takes the core from the one that it waits for, as soon as anything else runs on the machine."""


def thread_environment(threads: int, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment of a process whose math libraries use so many threads, which sleep while they wait. What
    `environment` says of waiting stays."""
    waiting = {name: environment.get(name, value) for name, value in _WAITING.items()}
    return {**dict.fromkeys(_COUNTS, str(threads)), **waiting}
