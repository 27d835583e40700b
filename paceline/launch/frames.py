"""A run that makes frames, or items in place of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import msgspec

from paceline.launch.checks import (
    ModelFile,
    check_curve,
    check_policies,
    check_weights,
    check_world_tiers,
    read_model_file,
)
from paceline.launch.console import make_console, say
from paceline.launch.errors import ArgumentError, LaunchError, OutputsError
from paceline.launch.files import make_writable
from paceline.launch.run_dir import RunDirPaths
from paceline.launch.summary import Summary, check_version, summarize
from paceline.launch.workload import NOBODY, Audience, Outputs, Recording, RecordOptions, Workload, WorkloadPlan
from paceline.pipeline.costs import Costs, costs_from
from paceline.pipeline.liveness import check_liveness
from paceline.pipeline.placement import Placement
from paceline.pipeline.stage import StageKind
from paceline.pipeline.topology import FrameTopology, WorldTopology
from paceline.pipeline.unit import ModelShape
from paceline.runtime.errors import PacelineError
from paceline.runtime.result import Decision, RunResult
from paceline.runtime.spec import RunSpec

__all__ = ["FrameWorkload", "WorldWorkload", "read_costs"]


class FrameWorkload(Workload[RunResult]):
    """See `Workload`. By itself it has no model, as sleep workloads have none."""

    command: ClassVar[str] = "run"
    makes: ClassVar[str] = "frames"
    spec: RunSpec

    def __init__(self, spec: RunSpec, audience: Audience = NOBODY) -> None:
        super().__init__(spec, audience)
        self._placement = Placement(spec.topology)

    @classmethod
    def smallest(cls, topology: FrameTopology) -> Self:
        return cls(RunSpec(topology, frames=1, sessions=1, seed=topology.seed))

    # -- before it starts ----------------------------------------------------------------------------------------------

    def model_file(self) -> ModelFile:
        """What is known of the model from its file's header. Raises `ArgumentError`."""
        return ModelFile(ModelShape(1, 0, 0, 0), 0)

    def check_files(self) -> None:
        check_curve(self.topology)
        check_policies(self.topology)

    def check(self, file: Path) -> None:
        spec, shape = self.spec, self.model_file().shape
        deadlock = check_liveness(spec.topology, shape)
        if deadlock is not None:
            raise ArgumentError(f"{file}: {deadlock}")
        self.check_model()
        check_policies(spec.topology)
        if not spec.serial:
            check_curve(spec.topology)
        decisions = self.decisions()
        if decisions is not None:
            self.check_decisions(decisions)
        if spec.out is not None:
            make_writable(f"--out {spec.out}", spec.out, spec.frames * spec.sessions * shape.frame_bytes)

    def check_model(self) -> None:
        """Check the model's weights, and that memory tiers hold its KV. Raises `ArgumentError`."""

    def decisions(self) -> list[Decision] | None:
        """The decisions of the journal that is replayed, if one is. Raises `ArgumentError` where it can't be read."""
        if self.spec.replay is None:
            return None
        # Imported here, as below: records and pictures need NumPy and more, and a topology that is wrong needs neither.
        from paceline.launch.records import read_journal

        return read_journal(self.spec.replay)

    def check_decisions(self, decisions: Sequence[Decision]) -> None:
        """Check that decisions can be taken again here. Raises `ArgumentError`."""

    def plan(self, file: Path, frames: int | None, sessions: int | None, measured: Path | None) -> WorkloadPlan:
        # Imported here: a run needs no tables of a plan.
        from paceline.launch.plan_view import plan_json, show_plan
        from paceline.pipeline.plan import plan as make_plan

        topology, model = self.spec.topology, self.model_file()
        costs = read_costs(topology, measured)
        try:
            made = make_plan(
                topology,
                model.shape,
                costs,
                sessions=sessions,
                frames=frames,
                weights_bytes=model.bytes,
                state_bytes=model.state_bytes,
            )
        except ValueError as error:
            raise ArgumentError(f"{file}: {error}") from error
        return WorkloadPlan(plan_json(made), lambda console: show_plan(made, console), made.deadlock is None)

    def record(self, file: Path, out: Path, options: RecordOptions) -> Recording:
        raise ArgumentError(f"{file} has no model; give a world or a language topology")

    # -- in a launcher and its workers ---------------------------------------------------------------------------------

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

        return run_rank(self.spec, rank, world_size, run_dir.path, progress, self.decisions())

    def work_serially(self, run_dir: RunDirPaths, progress: Callable[[int], None]) -> RunResult:
        from paceline.runtime.serial import run_serial

        return run_serial(self.spec, run_dir.path, progress, self.decisions())

    def decode(self, data: bytes) -> RunResult:
        return msgspec.msgpack.decode(data, type=RunResult)

    # -- when it is over -----------------------------------------------------------------------------------------------

    def with_records(self, result: RunResult, run_dir: RunDirPaths) -> RunResult:
        from paceline.launch.records import with_records

        return with_records(self.spec, result, run_dir.path)

    def summarize(self, result: RunResult) -> Summary:
        return summarize(self.spec, result)

    def outputs(self, out: Path, result: RunResult, run_dir: RunDirPaths) -> Outputs:
        from paceline.launch.outputs.write import FrameOutputs

        return FrameOutputs(out, self.spec, result)

    def show(self, summary: Summary) -> None:
        from paceline.launch.tables import print_summary

        print_summary(make_console(), summary)

    def failed(self, session: Mapping[str, Any]) -> bool:
        return session["failed"] is not None

    def finish_early(self, error: LaunchError, run_dir: RunDirPaths) -> None:
        """Keep frames, summary and pictures, and say on standard error what is kept."""
        if self.out is None:
            return
        from paceline.launch.records import interrupted_result

        try:
            result = interrupted_result(self.spec, run_dir.path, str(error))
            frames = sum(session.frames for session in result.sessions)
            if frames:
                again = "; Ctrl-C again leaves out the pictures" if error.exit_code > 128 else ""
                say(f"keeping {frames} frames in {self.out}{again}")
                self.conclude(result, run_dir, Audience(writing=self.audience.writing))
        except (OutputsError, PacelineError, OSError, ValueError) as lost:
            say(f"warning: {lost}")


def read_costs(topology: FrameTopology, measured: Path | None) -> Costs:
    """The stage costs of a topology, or of a `summary.json`. Raises `ArgumentError` where that can't be read."""
    if measured is None:
        return costs_from(topology)
    try:
        summary = json.loads(measured.read_bytes())
        if not isinstance(summary, Mapping):
            raise ValueError("it holds no JSON object; give the summary.json of a run (--out DIR)")
        check_version(summary)
        return costs_from(topology, summary)
    except OSError as error:
        raise ArgumentError(f"--measured {measured}: can't be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"--measured {measured}: {error}") from error


class WorldWorkload(FrameWorkload):
    """See `Workload`."""

    @property
    def topology(self) -> WorldTopology:
        return cast(WorldTopology, self.spec.topology)

    def model_file(self) -> ModelFile:
        return read_model_file(self.topology)

    def check_files(self) -> None:
        super().check_files()
        self.model_file()
        check_world_tiers(self.topology, self.spec.frames, self.spec.sessions)

    def check_model(self) -> None:
        check_weights(self.topology)
        if not self.serial:
            check_world_tiers(self.topology, self.spec.frames, self.spec.sessions)

    def check_decisions(self, decisions: Sequence[Decision]) -> None:
        if self.spec.replay is not None:
            from paceline.launch.records import check_replay

            check_replay(self.spec.replay, decisions, self.spec.topology)

    def record(self, file: Path, out: Path, options: RecordOptions) -> Recording:
        if options.prompt or options.prompts is not None:
            raise ArgumentError(f"{file} makes frames; it takes --frames and --sessions, and no prompt")
        # Imported here: it brings torch.
        from paceline.launch.record_world import record_world

        self.model_file()
        check_weights(self.topology)
        return record_world(self.topology, out, options.frames, options.sessions, options.seed)
