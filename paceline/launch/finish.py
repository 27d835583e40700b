"""What is done with a result, on whatever way it came: summed up, and written where the user asked for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from paceline.launch.summary import Summary, summarize
from paceline.runtime.result import FRAMES_FILE, TRUTH_FILE, RunResult, SessionResult
from paceline.runtime.spec import RunSpec

if TYPE_CHECKING:
    from paceline.launch.outputs.write import Frames

__all__ = ["finish"]


def finish(spec: RunSpec, result: RunResult, run_dir: Path) -> Summary:
    """Sum a run up; with `spec.out`, write its outputs there. `run_dir` holds the coordinator's raw frames."""
    summary = summarize(spec, result)
    if spec.out is not None:
        # Imported here: pictures need NumPy and more, and a run without --out needs none of it.
        from paceline.launch.outputs.write import write_outputs

        frames = _frames(run_dir, FRAMES_FILE, result.sessions)
        truth = _frames(run_dir, TRUTH_FILE, result.sessions)
        write_outputs(spec.out, spec, result, summary, frames, truth or None)
    return summary


def _frames(run_dir: Path, name: str, sessions: list[SessionResult]) -> Mapping[int, Frames]:
    """The frames of the sessions that left any, mapped from their files and not read into memory: as many of each as
    were shown. Of a session that failed there may be more true ones; before its first frame there are none to take."""
    import numpy as np

    frames = {}
    for session in sessions:
        path = run_dir / name.format(session.id)
        if session.shape and path.exists() and path.stat().st_size:
            frames[session.id] = np.memmap(path, np.uint8, "r").reshape(-1, *session.shape)[: session.frames]
    return frames
