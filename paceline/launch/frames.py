"""A run that makes frames, as launchers see it; and what is done with its result, on whatever way it came."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from paceline.launch.console import say
from paceline.launch.errors import LaunchError, OutputsError
from paceline.launch.journal import read_journal
from paceline.launch.run_dir import RunDirPaths
from paceline.launch.summary import Summary, summarize
from paceline.launch.workload import Workload
from paceline.pipeline.placement import Placement
from paceline.pipeline.topology import StageKind
from paceline.runtime.errors import PacelineError
from paceline.runtime.result import Decision, RunResult
from paceline.runtime.spec import RunSpec

__all__ = ["NOBODY", "Audience", "FrameWorkload"]


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


class FrameWorkload(Workload[RunResult]):
    """See `Workload`."""

    spec: RunSpec

    def __init__(self, spec: RunSpec, audience: Audience = NOBODY) -> None:
        super().__init__(spec)
        self._audience = audience
        self._placement = Placement(spec.topology)

    @property
    def serial_threads(self) -> int:
        return max(group.threads for group in self.topology.groups.values())

    @property
    def leader(self) -> int:
        """The rank of source and sink."""
        return self._placement.rank_of(self.topology.stage_of(StageKind.sink), 0)

    def rank_name(self, rank: int) -> str:
        """As `worker rank 1 (group late: step1, decode)`."""
        streams = self._placement.streams(rank, self.spec.sessions)
        stages = ", ".join(dict.fromkeys(stage for stage, _ in streams))
        group = self._placement.group_of_rank(rank)
        return f"worker rank {rank} (group {group}{f': {stages}' if stages else ', idle'})"

    def import_worker(self) -> None:
        import paceline.runtime.run
        import paceline.runtime.serial  # noqa: F401

    def work(
        self, rank: int, world_size: int, run_dir: RunDirPaths, progress: Callable[[int], None]
    ) -> RunResult | None:
        # Imported here, as below: torch takes a second, and errors and signals must not wait for it.
        from paceline.runtime.run import run_rank

        return run_rank(self.spec, rank, world_size, run_dir.path, progress, self._decisions())

    def work_serially(self, run_dir: RunDirPaths, progress: Callable[[int], None]) -> RunResult:
        from paceline.runtime.serial import run_serial

        return run_serial(self.spec, run_dir.path, progress, self._decisions())

    def decode(self, data: bytes) -> RunResult:
        return msgspec.msgpack.decode(data, type=RunResult)

    def progress(self, count: int) -> None:
        self._audience.frames(count)

    def finish(self, result: RunResult, run_dir: RunDirPaths) -> Summary:
        """The audience has the summary before pictures are made; an output that fails leaves the others."""
        # Imported here: records and pictures need NumPy and more, and a topology that is wrong needs neither.
        from paceline.launch.records import with_records

        return _conclude(self.spec, with_records(self.spec, result, run_dir.path), self._audience)

    def finish_early(self, error: LaunchError, run_dir: RunDirPaths) -> None:
        """Keep frames, summary and pictures, and say on standard error what is kept."""
        if self.spec.out is None:
            return
        from paceline.launch.records import interrupted_result

        try:
            result = interrupted_result(self.spec, run_dir.path, str(error))
            frames = sum(session.frames for session in result.sessions)
            if frames:
                again = "; Ctrl-C again leaves out the pictures" if error.exit_code > 128 else ""
                say(f"keeping {frames} frames in {self.spec.out}{again}")
                _conclude(self.spec, result, Audience(writing=self._audience.writing))
        except (OutputsError, PacelineError, OSError, ValueError) as lost:
            say(f"warning: {lost}")

    def _decisions(self) -> list[Decision] | None:
        return None if self.spec.replay is None else read_journal(self.spec.replay)


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
