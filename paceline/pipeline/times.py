"""The flow times at which the denoising steps of a frame start."""

from __future__ import annotations

__all__ = ["step_times"]


def step_times(steps: int) -> tuple[float, ...]:
    """Times `(t_0, ..., t_S)` of S steps: step s takes a frame from t_s to t_{s+1}; t_0 = 1 is noise, t_S = 0 is clean.

    Evenly spaced. Level s of a frame is its state at t_s, so level S is the finished frame. Raises `ValueError` for
    fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"a frame needs at least 1 step, not {steps}")
    return (*(1.0 - s / steps for s in range(steps)), 0.0)
