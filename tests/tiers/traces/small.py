"""Small traces for tests, drawn by hypothesis."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from paceline.tiers.traces.format import TraceHeader
from paceline.tiers.traces.trace import BlockTable, Call, Step, Trace

__all__ = ["small_traces", "trace_of"]

_EIGHTHS = st.integers(0, 8)


def trace_of(masses: np.ndarray, prompt: int = 1, layers: int = 1) -> Trace:
    """A session whose blocks have the masses `[steps, blocks]`, the same in every layer; `prompt` blocks are there from
    the first step on, and then one is made each step until there are all. A block has one token."""
    steps, n = masses.shape
    made = []
    for step in range(steps):
        count = min(n, prompt + step)
        blocks = np.arange(count) * layers
        row = masses[step, :count] / max(1.0, float(masses[step, :count].sum()))
        # One token is still to come, so that no block is being written.
        calls = [Call(0, layer, count + 1, blocks + layer, row) for layer in range(layers)]
        made.append(Step(step * 2, calls, np.zeros(0, dtype=np.int64)))
    number = np.arange(n * layers)
    start = number // layers
    table = BlockTable(
        np.zeros(len(number), dtype=np.int64), (number % layers).astype(np.int32), start,
        np.full(len(number), -1, dtype=np.int32), start == 0,
    )  # fmt: skip
    return Trace(TraceHeader("small", 1, 1000), table, made)


@st.composite
def small_traces(draw: st.DrawFn, most_blocks: int = 6, most_steps: int = 8, layers: int = 1) -> Trace:
    n, steps = draw(st.integers(1, most_blocks)), draw(st.integers(1, most_steps))
    rows = st.lists(st.lists(_EIGHTHS, min_size=n, max_size=n), min_size=steps, max_size=steps)
    return trace_of(np.array(draw(rows), dtype=np.float64) / 8, draw(st.integers(1, n)), layers)
