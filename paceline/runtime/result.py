"""What a run leaves behind: outputs per session, when each frame was asked for and shown, who computed what when.

Times are seconds since the epoch on one clock for all ranks (`runtime/clock.py`). An `Event` counts frames as positions
in the session, prompt included; `FrameTime` and `Decision` count generated frames.
"""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = [
    "EVENTS_KEPT",
    "FRAMES_FILE",
    "TRUTH_FILE",
    "Decision",
    "EdgeUse",
    "Event",
    "FrameTime",
    "RankReport",
    "RunResult",
    "SessionResult",
]

EVENTS_KEPT = 200_000
"""Events that each rank keeps; the oldest are dropped, so that memory does not grow with the run."""

FRAMES_FILE = "frames-{}.raw"
"""Raw bytes of all frames of a session, one after another, in the run's folder."""
TRUTH_FILE = "truth-{}.raw"
"""The true world's frames under the same actions."""


class Event(msgspec.Struct, frozen=True, array_like=True):
    """One unit of compute, or a wait: kind is that of the unit, or `wait`."""

    rank: int
    stage: str
    session: int
    kind: str
    frame: int
    step: int
    """-1 where the unit is no pass."""
    layer: int
    """First layer of the unit."""
    start_s: float
    end_s: float


class EdgeUse(msgspec.Struct, frozen=True):
    """Traffic of one edge between two ranks."""

    edge: int
    source_rank: int
    target_rank: int
    transport: str
    items: int
    bytes: int
    peak_items: int
    """Most items of one session that were in flight at once."""
    peak_bytes: int


class FrameTime(msgspec.Struct, frozen=True, array_like=True):
    """When a frame's action was taken and when the finished frame reached the sink."""

    session: int
    frame: int
    emitted_s: float
    shown_s: float
    due_s: float
    """When it was due, or NaN without a deadline."""


class Decision(msgspec.Struct, frozen=True):
    """An approximation that was taken (`fewer_steps`, `repeat`): a line of the journal."""

    session: int
    frame: int
    what: str
    value: int


class SessionResult(msgspec.Struct, frozen=True):
    """Outputs of one session. `frames` are the generated ones that were shown, without the prompt."""

    id: int
    frames: int
    outputs_sha256: str
    late: int
    shape: list[int]
    """Of one frame, `[H, W, 3]`; empty where none was shown."""
    failed: str | None = None
    """Where and why the session failed: nothing is shown from frame `frames` on. None where it came through."""


class RankReport(msgspec.Struct, frozen=True):
    """What each rank tells the coordinator when it is done."""

    rank: int
    group: str
    host: str
    pid: int
    device: str
    threads: int
    stages: list[str]
    busy_s: float
    wall_s: float
    stage_ms: dict[str, float]
    """Median milliseconds of one pass (or item) of each stage."""
    peak_rss_bytes: int
    sessions: list[SessionResult]
    """Of the sessions whose source and sink are on this rank; likewise `times` and `decisions`."""
    times: list[FrameTime]
    decisions: list[Decision]
    events: list[Event]
    edges: list[EdgeUse]
    kv_sha256: dict[str, str]
    """Under `session/level`: SHA-256 of all KV computed at that level, frame by frame and layer by layer (with
    `kv_hash`)."""
    wait_s: float = 0.0
    """Seconds in which no unit was ready. What is neither busy nor waited is the runtime's own cost."""
    tiers: dict[str, Any] | None = None
    """What became of the blocks in its memory tiers, if it has any (`TierManager.statistics`)."""


class RunResult(msgspec.Struct, frozen=True):
    """The whole run, as the coordinator (the rank of source and sink) puts it together."""

    sessions: list[SessionResult]
    wall_s: float
    """From the first action to the last frame."""
    times: list[FrameTime]
    decisions: list[Decision]
    ranks: list[RankReport]
