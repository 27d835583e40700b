"""What ranks wrote down during a run, read back: whole results for those who show them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from paceline.launch.errors import ArgumentError
from paceline.pipeline.context import Context
from paceline.pipeline.topology import FrameTopology, LatePolicy
from paceline.runtime.journal import JournalError, read_decisions
from paceline.runtime.result import (
    EVENTS_FILE,
    EVENTS_KEPT,
    FRAMES_FILE,
    JOURNAL_FILE,
    TIMES_FILE,
    TIMES_KEPT,
    TRUTH_FILE,
    Decision,
    Event,
    FrameTime,
    RankReport,
    RunResult,
    SessionResult,
)
from paceline.runtime.spec import RunSpec
from paceline.runtime.spool import read_spool

__all__ = ["check_replay", "frames_of", "interrupted_result", "read_journal", "truth_of", "with_events", "with_records"]


Frames = npt.NDArray[np.uint8]


def with_records(spec: RunSpec, result: RunResult, run_dir: Path) -> RunResult:
    """The result with its times, decisions and events. `run_dir` is the leader's folder. Raises `SpoolError` and
    `JournalError` where a file is damaged, and `OSError`."""
    ranks = with_events(result.ranks, run_dir)
    return replace(result, ranks=ranks, times=_times(spec, run_dir), decisions=_decisions(spec, run_dir))


def with_events(reports: Sequence[RankReport], run_dir: Path) -> list[RankReport]:
    """The reports with the events of their ranks. Raises `SpoolError` and `OSError`."""
    return [
        replace(report, events=read_spool(run_dir / EVENTS_FILE.format(report.rank), Event, EVENTS_KEPT))
        for report in reports
    ]


def interrupted_result(spec: RunSpec, run_dir: Path, why: str) -> RunResult:
    """What is known of a run that ended early, from the files alone: sessions as far as they were shown, no ranks.
    Raises as `with_records`."""
    times = _times(spec, run_dir)
    sessions = []
    for session in range(spec.sessions):
        frames = _frames(spec.out, FRAMES_FILE, session)
        shown = [time for time in times if time.session == session]
        # A frame is written before its time is, so one more may be whole. Of a decoder that returns several pictures
        # for a frame, the times tell how many frames there are.
        kept = len(shown) if frames is None or len(frames) > len(shown) + 1 else len(frames)
        digest = hashlib.sha256() if frames is None else hashlib.sha256(np.ascontiguousarray(frames).data)
        sessions.append(
            SessionResult(
                session,
                kept,
                digest.hexdigest(),
                sum(time.shown_s > time.due_s for time in shown),
                [] if frames is None else list(frames.shape[1:]),
                None if kept == spec.frames else why,
                kept if frames is None else len(frames),
            )
        )
    wall_s = max(t.shown_s for t in times) - min(t.emitted_s for t in times) if times else 0.0
    return RunResult(sessions, wall_s, [], times, _decisions(spec, run_dir), why)


def frames_of(out: Path, sessions: list[SessionResult]) -> dict[int, Frames]:
    """The pictures of the sessions that have any, mapped from their files and not read into memory: as many of each as
    were shown."""
    return _of_sessions(out, FRAMES_FILE, sessions)


def truth_of(out: Path, sessions: list[SessionResult]) -> dict[int, Frames]:
    """The true world's frames for those of `frames_of`."""
    return _of_sessions(out, TRUTH_FILE, sessions)


def _of_sessions(out: Path, name: str, sessions: list[SessionResult]) -> dict[int, Frames]:
    found = {}
    for session in sessions:
        frames = _frames(out, name, session.id)
        if frames is not None and session.frames:
            found[session.id] = frames[: session.pictures]
    return found


def _frames(out: Path | None, name: str, session: int) -> Frames | None:
    path = None if out is None else out / name.format(session)
    if path is None or not path.exists() or not path.stat().st_size:
        return None
    frames: Frames = np.load(path, mmap_mode="r", allow_pickle=False)
    return frames


def _times(spec: RunSpec, run_dir: Path) -> list[FrameTime]:
    """By session and frame."""
    files = (run_dir / TIMES_FILE.format(session) for session in range(spec.sessions))
    return [time for file in files for time in read_spool(file, FrameTime, TIMES_KEPT)]


def _decisions(spec: RunSpec, run_dir: Path) -> list[Decision]:
    """By session, and in the order they were taken."""
    path = (spec.out or run_dir) / JOURNAL_FILE
    return sorted(read_decisions(path), key=lambda decision: decision.session) if path.exists() else []


def read_journal(path: Path) -> list[Decision]:
    """The decisions of a `journal.jsonl` that `--out` wrote. Raises `ArgumentError` naming the bad line."""
    try:
        return read_decisions(path)
    except OSError as error:
        reason = error.strerror or error
        raise ArgumentError(f"{path}: can't be read: {reason}; give the journal.jsonl of an earlier --out") from error
    except JournalError as error:
        raise ArgumentError(f"{error}; give the journal.jsonl of an earlier --out, unchanged") from error


def check_replay(path: Path, decisions: Sequence[Decision], topology: FrameTopology) -> None:
    """Raise `ArgumentError` where a decision of a journal can't be taken in this topology: a step that the model does
    not have, or that lies too far behind the one at which the frame before began."""
    spec, steps = topology.context, topology.steps
    firsts: dict[int, dict[int, int]] = {}
    for decision in decisions:
        if decision.what == LatePolicy.fewer_steps:
            firsts.setdefault(decision.session, {})[decision.frame] = decision.value
    for session, first in firsts.items():
        context = Context.of(spec, steps, spec.prompt, spec.prompt)
        for frame in sorted(first.keys() | {frame + 1 for frame in first}):
            value = first.get(frame, 0)
            try:
                context.begin(spec.prompt + frame, value)
            except ValueError as error:
                raise ArgumentError(
                    f"{path}: session {session} can't begin frame {frame} at step {value} of {steps} here; give the "
                    "journal.jsonl of a run with the same model.steps and context"
                ) from error
