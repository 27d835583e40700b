"""What a run leaves behind: outputs per session, when each frame was asked for and shown, who computed what when.

Ranks append what grows with the run to files (`runtime/spool.py`): events and times in the run's folder, frames in the
folder that the user asked for, decisions in either. Reports and results that travel hold none of it; whoever shows a
run reads it back (`launch/records.py`).

Times are seconds since the epoch on one clock for all ranks (`runtime/timeline.py`). An `Event` counts frames as
positions in the session, prompt included; `FrameTime` and `Decision` count generated frames.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from paceline.stages.lm.tier_history import TierHistory

if TYPE_CHECKING:
    from paceline.stages.memory.frame_memory import FrameMemory

__all__ = [
    "EVENTS_FILE",
    "EVENTS_KEPT",
    "FRAMES_FILE",
    "JOURNAL_FILE",
    "TIMES_FILE",
    "TIMES_KEPT",
    "TRUTH_FILE",
    "Decision",
    "EdgeUse",
    "Event",
    "FrameTime",
    "LanguageResult",
    "MemoryUse",
    "RankReport",
    "Result",
    "RunResult",
    "SessionResult",
    "TextResult",
    "memory_use",
    "merge",
    "merge_tiers",
    "peak_rss_bytes",
]


EVENTS_FILE = "events-{}.spool"
"""Events of a rank, in the run's folder; only where the run has a folder for outputs."""
EVENTS_KEPT = 200_000
"""Events of a rank that are shown, the newest."""

TIMES_FILE = "times-{}.spool"
"""Times of the frames of a session, in the run's folder."""
TIMES_KEPT = 200_000
"""Frames of a session that rates, latencies and lateness are taken from, the newest."""

JOURNAL_FILE = "journal.jsonl.part"
"""Decisions as they are taken, in the folder for outputs, else in the run's folder."""
FRAMES_FILE = "session-{}.npy.part"
"""Pictures of a session as they are shown, in the folder for outputs; `.part` goes when the run is over."""
TRUTH_FILE = "truth-{}.npy.part"
"""The true world's frames under the same actions, in the folder for outputs until pictures are made of them."""


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
    """Of one picture, `[H, W, 3]`; empty where none was shown."""
    failed: str | None = None
    """Where and why the session failed: nothing is shown from frame `frames` on. None where it came through."""
    pictures: int = 0
    """All pictures of the frames: a world model's decoder may return several for one frame."""


class MemoryUse(msgspec.Struct, frozen=True):
    """What context memories did, of one session or of several."""

    state_bytes: int
    """Of the state of one session: the same from the first frame to the last"""
    reads: int
    writes: int


class RankReport(msgspec.Struct, frozen=True):
    """What each rank tells the leader when it is done."""

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
    """Of the sessions whose source and sink are on this rank."""
    edges: list[EdgeUse]
    kv_sha256: dict[str, str]
    """Under `session/level`: SHA-256 of all KV computed at that level, frame by frame and layer by layer (with
    `kv_hash`)."""
    wait_s: float = 0.0
    """Seconds in which no unit was ready. What is neither busy nor waited is the runtime's own cost."""
    tiers: dict[str, Any] | None = None
    """What became of the blocks in its memory tiers, if it has any (`TierManager.statistics`)."""
    memory: MemoryUse | None = None
    """Of the context memories that are on this rank, if there are any."""
    span_s: tuple[float, float] = (0.0, 0.0)
    """When the first action was taken here and the last frame shown; zeros where no session is on this rank."""
    unsaved: list[str] = []
    """Output files that could not be written to their end, with the reason."""
    events: list[Event] = []
    """Read back from its file."""
    role: str = ""
    """Of a rank of a language workload: drafter or verifier; serial for the reference."""
    passes: int = 0
    """Forwards of a language model."""
    tokens: int = 0
    """Tokens forwarded, over all passes."""
    pass_ms: float = 0.0
    """Median of a forward."""
    counters: dict[str, Any] = {}
    """What became of drafts (`Counters`)."""
    history: TierHistory | None = None
    """Where the blocks of a language model lay over time."""
    failures: list[str] = []
    """What went wrong with single language sessions here, and why."""


SessionT = TypeVar("SessionT")


class Result(msgspec.Struct, Generic[SessionT], frozen=True):
    """The whole run, as the leader puts it together. Of each session it holds what its workload says of one."""

    sessions: list[SessionT]
    wall_s: float
    """From the first action, or the first prompt's pass, to the last frame or token; loading is not in it."""
    ranks: list[RankReport]
    times: list[FrameTime] = []
    """Read back from their files, as `decisions` are. Text has neither."""
    decisions: list[Decision] = []
    ended: str | None = None
    """Why the run ended early; None where it came to its end."""


class RunResult(Result[SessionResult], frozen=True):
    """A whole run that makes frames."""


def peak_rss_bytes() -> int:
    """The most resident memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def merge(reports: list[RankReport]) -> RunResult:
    """The whole run from the reports of its ranks."""
    spans = [report.span_s for report in reports if report.span_s != (0.0, 0.0)]
    wall_s = max(end for _, end in spans) - min(start for start, _ in spans) if spans else 0.0
    return RunResult(
        sorted((session for report in reports for session in report.sessions), key=lambda session: session.id),
        wall_s,
        sorted(reports, key=lambda report: report.rank),
    )


def memory_use(memories: Sequence[FrameMemory | MemoryUse]) -> MemoryUse | None:
    """What context memories did together, those of a rank or those of all ranks; None where there are none."""
    if not memories:
        return None
    return MemoryUse(
        max(memory.state_bytes for memory in memories),
        sum(memory.reads for memory in memories),
        sum(memory.writes for memory in memories),
    )


def merge_tiers(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Statistics of several tier managers as one: counts and bytes are added up, of `max` the largest is taken and of
    `mean` the mean."""
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for part in parts for key in part):
        values = [part[key] for part in parts if key in part]
        if all(isinstance(value, Mapping) for value in values):
            merged[key] = merge_tiers(values)
        else:
            merged[key] = max(values) if key == "max" else mean(values) if key == "mean" else sum(values)
    return merged


class TextResult(msgspec.Struct, frozen=True):
    """One session. Times are seconds from the start of the run."""

    id: int
    text: str
    token_ids: list[int]
    """The new ones, without the prompt."""
    finish_reason: str
    prompt_tokens: int
    started_s: float
    first_token_s: float
    finished_s: float
    drafted: int = 0
    """of the new tokens: committed as drafted"""
    refilled: int = 0
    """the target's own in place of a rejected draft, or behind the last one of a window; the rest are plain"""


class LanguageResult(Result[TextResult], frozen=True, kw_only=True):
    """The whole generation."""

    settings: dict[str, int]
    """Window, depth and hedge width at the end."""
    predicted_speedup: float | None
    measured_speedup: float | None
    warnings: list[str]
    parked: list[int] = msgspec.field(default_factory=list)
    """Numbers of the sessions that can be resumed."""
