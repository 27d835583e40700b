"""What is done with a result, on whatever way it came: summed up, shown, and written where the user asked for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from paceline.launch.console import say
from paceline.launch.errors import LaunchError, OutputsError
from paceline.launch.summary import Summary, summarize
from paceline.runtime.errors import PacelineError
from paceline.runtime.result import RunResult
from paceline.runtime.spec import RunSpec

__all__ = ["NOBODY", "Audience", "finish", "finish_early"]


def _ignore(*_: object) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Audience:
    """Who is told how a run goes."""

    frames: Callable[[int], None] = _ignore
    """Called now and then with the number of frames that are done."""
    summary: Callable[[Summary], None] = _ignore
    """Called once, before pictures are made: they take time, and may fail."""
    writing: Callable[[str, int, int], None] = _ignore
    """Called before each picture with its name, how many are done, and how many there are."""


NOBODY = Audience()
"""Nobody is told."""


def finish(spec: RunSpec, result: RunResult, run_dir: Path, audience: Audience) -> Summary:
    """Sum a run up, tell the audience, and with `spec.out` write its outputs there. `run_dir` is the coordinator's.

    Raises `OutputsError` where an output could not be written; the others are, and the audience has the summary.
    """
    # Imported here, as below: records and pictures need NumPy and more, and a topology that is wrong needs neither.
    from paceline.launch.records import with_records

    return _conclude(spec, with_records(spec, result, run_dir), audience)


def finish_early(spec: RunSpec, run_dir: Path, error: LaunchError, audience: Audience) -> None:
    """Keep what a run has left that `error` ended: with `spec.out` its frames, summary and pictures.

    Says on standard error what is kept, and raises nothing but `KeyboardInterrupt` and `Interrupted`.
    """
    if spec.out is None:
        return
    from paceline.launch.records import interrupted_result

    try:
        result = interrupted_result(spec, run_dir, str(error))
        frames = sum(session.frames for session in result.sessions)
        if frames:
            again = "; Ctrl-C again leaves out the pictures" if error.exit_code > 128 else ""
            say(f"keeping {frames} frames in {spec.out}{again}")
            _conclude(spec, result, Audience(writing=audience.writing))
    except (OutputsError, PacelineError, OSError, ValueError) as lost:
        say(f"warning: {lost}")


def _conclude(spec: RunSpec, result: RunResult, audience: Audience) -> Summary:
    summary = summarize(spec, result)
    if spec.out is None:
        audience.summary(summary)
        return summary
    from paceline.launch.outputs.write import write_pictures, write_results
    from paceline.launch.records import frames_of, truth_of

    # Mapped before the files get their names, which leaves the maps as they are.
    frames, truth = frames_of(spec.out, result.sessions), truth_of(spec.out, result.sessions)
    lost = [file for report in result.ranks for file in report.unsaved]
    summary["warnings"] += [f"not saved: {file}" for file in lost]
    lost += write_results(spec.out, summary, sorted(frames))
    audience.summary(summary)
    lost += write_pictures(spec.out, spec, result, summary, frames, truth or None, audience.writing)
    if lost:
        raise OutputsError(spec.out, lost)
    return summary
