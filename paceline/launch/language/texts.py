"""A run that makes text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import msgspec

from paceline.launch.checks import check_curve, check_drafter, check_policies
from paceline.launch.console import make_console
from paceline.launch.errors import ArgumentError, LaunchError
from paceline.launch.files import make_writable
from paceline.launch.language.request import Prompt, read_prompts
from paceline.launch.run_dir import RunDirPaths
from paceline.launch.summary import Summary
from paceline.launch.workload import NOBODY, Audience, Outputs, Recording, RecordOptions, Workload, WorkloadPlan
from paceline.pipeline.placement import Placement
from paceline.pipeline.topology import LanguageTopology
from paceline.runtime.language.models import Models
from paceline.runtime.language.roles import Roles
from paceline.runtime.result import LanguageResult
from paceline.runtime.spec import GenerateSpec
from paceline.stages.lm.folder import ModelFolderError
from paceline.stages.sampling_params import SamplingParams

if TYPE_CHECKING:
    from paceline.launch.language.view import StreamView

__all__ = ["TextWorkload", "check_generation", "find_models"]


class TextWorkload(Workload[LanguageResult]):
    """See `Workload`.

    With `stream`, a single session's text is printed as it comes.
    """

    command: ClassVar[str] = "generate"
    makes: ClassVar[str] = "text"
    spec: GenerateSpec

    def __init__(self, spec: GenerateSpec, audience: Audience = NOBODY, stream: bool = False) -> None:
        super().__init__(spec, audience)
        self._stream = stream
        self._models: Models | None = None
        self._roles = Roles.of(spec.topology)
        self._view: StreamView | None = None

    @classmethod
    def smallest(cls, topology: LanguageTopology) -> Self:
        return cls(GenerateSpec(topology, ("",), 1, topology.seed, SamplingParams()))

    # -- before it starts ----------------------------------------------------------------------------------------------

    @property
    def models(self) -> Models:
        """What is known of the models. Raises `ArgumentError` where a folder holds none."""
        if self._models is None:
            self._models = find_models(self.spec)
        return self._models

    def check_files(self) -> None:
        check_curve(self.topology)
        check_policies(self.topology)
        # Imported here: Transformers takes seconds, and other workloads need none.
        from paceline.launch.language.preflight import check_tiers_hold

        check_tiers_hold(self.spec, self.models, [1] * len(self.spec.prompts))

    def check(self, file: Path) -> None:
        check_policies(self.topology)
        check_generation(self.spec, self.models)
        if not self.serial:
            check_curve(self.topology)
        if self.out is not None:
            make_writable(f"--out {self.out}", self.out)

    def plan(self, file: Path, frames: int | None, sessions: int | None, measured: Path | None) -> WorkloadPlan:
        """By the formula: it simulates nothing."""
        from paceline.launch.language.plan import language_plan, show_language_plan

        check_drafter(self.spec.topology)
        made = language_plan(self.spec.topology)
        return WorkloadPlan(made, partial(show_language_plan, made), made["live"])

    def record(self, file: Path, out: Path, options: RecordOptions) -> Recording:
        texts = read_prompts(options.prompt, options.prompts)
        if any(text != Prompt(text.prompt) for text in texts):
            raise ArgumentError(
                "--prompts: all sessions are recorded with the options of the command; give texts alone"
            )
        try:
            SamplingParams(options.temperature)
        except ValueError as error:
            raise ArgumentError(str(error)) from error
        # Imported here: Transformers takes seconds, and what is wrong above should not wait for it.
        from paceline.launch.language.record import record_generation

        try:
            return record_generation(
                self.spec.topology,
                [text.prompt for text in texts],
                out,
                max_tokens=options.max_tokens,
                seed=options.seed,
                temperature=options.temperature,
                ignore_eos=options.ignore_eos,
            )
        except ModelFolderError as error:
            raise ArgumentError(str(error)) from error

    # -- in a launcher and its workers ---------------------------------------------------------------------------------

    @property
    def serial_threads(self) -> int:
        return self.topology.groups[Placement(self.topology).group_of_rank(self._roles.first)].threads

    @property
    def leader(self) -> int:
        """The first verifier."""
        return self._roles.first

    @property
    def expendable(self) -> tuple[int, ...]:
        """The drafter: decoding goes on plainly."""
        return (self._roles.drafter,)

    def rank_name(self, rank: int) -> str:
        return self._roles.name(rank)

    def import_worker(self) -> None:
        import paceline.runtime.language.run
        import paceline.runtime.language.serial  # noqa: F401

    def work(
        self, rank: int, world_size: int, run_dir: RunDirPaths, progress: Callable[[int], None]
    ) -> LanguageResult | None:
        # Imported here, as below: it brings torch and Transformers.
        from paceline.runtime.language.run import generate_rank

        return generate_rank(self.spec, self.models, rank, world_size, run_dir.path, progress, run_dir.stream)

    def work_serially(self, run_dir: RunDirPaths, progress: Callable[[int], None]) -> LanguageResult:
        from paceline.runtime.language.serial import generate_serial

        return generate_serial(self.spec, self.models, run_dir.stream)

    def decode(self, data: bytes) -> LanguageResult:
        return msgspec.msgpack.decode(data, type=LanguageResult)

    def begin(self, run_dir: RunDirPaths) -> None:
        if self._stream and len(self.spec.prompts) == 1:
            from paceline.launch.language.view import StreamView

            self._view = StreamView(run_dir.stream, sys.stdout, self.spec.prompts[0])

    def progress(self, count: int) -> None:
        super().progress(count)
        if self._view is not None:
            self._view(count)

    # -- when it is over -----------------------------------------------------------------------------------------------

    def finish(self, result: LanguageResult, run_dir: RunDirPaths) -> Summary:
        self.progress(len(self.spec.prompts))
        if self._view is not None:
            self._view.close()
        return super().finish(result, run_dir)

    def summarize(self, result: LanguageResult) -> Summary:
        from paceline.launch.language.view import summarize_language

        return summarize_language(self.spec, result)

    def outputs(self, out: Path, result: LanguageResult, run_dir: RunDirPaths) -> Outputs:
        from paceline.launch.language.outputs import TextOutputs

        return TextOutputs(out, self.spec, result, run_dir.path)

    def show(self, summary: Summary) -> None:
        """The texts, where they were not printed as they came, and a table of figures."""
        from paceline.launch.language.view import print_texts, show_summary

        if self._view is None:
            print_texts(self.spec.prompts, summary)
        show_summary(make_console(), summary)

    def failed(self, session: Mapping[str, Any]) -> bool:
        return bool(session["finish_reason"] == "failed")

    def finish_early(self, error: LaunchError, run_dir: RunDirPaths) -> None:
        """Keep the texts so far, and say so on standard error."""
        if self.out is not None:
            from paceline.launch.language.outputs import keep_texts

            keep_texts(self.out, self.spec, run_dir.stream, str(error))


def find_models(spec: GenerateSpec) -> Models:
    """What is known of the models of a generation, after a look at its drafter. Raises `ArgumentError`."""
    check_drafter(spec.topology)
    try:
        return Models.of(spec)
    except (ModelFolderError, ValueError) as error:
        raise ArgumentError(f"model: {error}") from error


def check_generation(spec: GenerateSpec, models: Models) -> None:
    """Check the models, the lengths of the prompts, memory tiers and parking. Raises `ArgumentError`."""
    try:
        tokenizer = models.tokenizer()
    except (ModelFolderError, ValueError) as error:
        raise ArgumentError(str(error)) from error
    # Imported here, as they bring torch: what is wrong with a folder should not wait for it.
    from paceline.launch.language.preflight import check_models, check_parked_tokens, check_parking, check_tiers_hold

    begun = []
    for number in range(len(spec.prompts)):
        try:
            begun.append(spec.begin(number, tokenizer))
        except ValueError as error:
            raise ArgumentError(f"prompt {number}: {error}") from error
    check_parked_tokens(spec, models)
    check_models(spec, models, begun)
    check_tiers_hold(spec, models, [len(tokens) for tokens in begun])
    check_parking(spec, models)
