"""Thread counts of the math libraries, which read them from the environment when they are loaded."""

from __future__ import annotations

__all__ = ["thread_environment"]

_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def thread_environment(threads: int) -> dict[str, str]:
    """Environment of a process whose math libraries use so many threads."""
    return dict.fromkeys(_VARIABLES, str(threads))
