"""A run that makes text, as launchers see it."""

from __future__ import annotations

import sys
from collections.abc import Callable

import msgspec

from paceline.launch.console import make_console
from paceline.launch.errors import LaunchError
from paceline.launch.language.outputs import keep_texts, write_language_outputs
from paceline.launch.language.summary import summarize_language
from paceline.launch.language.view import StreamView, print_texts, show_summary
from paceline.launch.run_dir import RunDirPaths
from paceline.launch.summary import Summary
from paceline.launch.workload import Workload
from paceline.pipeline.placement import Placement
from paceline.runtime.language.models import Models
from paceline.runtime.language.result import LanguageResult
from paceline.runtime.language.roles import Roles
from paceline.runtime.language.spec import GenerateSpec

__all__ = ["TextWorkload"]


class TextWorkload(Workload[LanguageResult]):
    """See `Workload`. `models` is what is known of the spec's models already.

    With `show`, a single session's text is printed as it comes, those of several at the end, and a table of figures
    behind.
    """

    spec: GenerateSpec

    def __init__(self, spec: GenerateSpec, models: Models, show: bool = False) -> None:
        super().__init__(spec)
        self._models, self._show = models, show
        self._roles = Roles.of(spec.topology)
        self._view: StreamView | None = None

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

        return generate_rank(self.spec, self._models, rank, world_size, run_dir.path, progress, run_dir.stream)

    def work_serially(self, run_dir: RunDirPaths, progress: Callable[[int], None]) -> LanguageResult:
        from paceline.runtime.language.serial import generate_serial

        return generate_serial(self.spec, self._models, run_dir.stream)

    def decode(self, data: bytes) -> LanguageResult:
        return msgspec.msgpack.decode(data, type=LanguageResult)

    def begin(self, run_dir: RunDirPaths) -> None:
        if self._show and len(self.spec.prompts) == 1:
            self._view = StreamView(run_dir.stream, sys.stdout, self.spec.prompts[0])

    def progress(self, count: int) -> None:
        if self._view is not None:
            self._view(count)

    def finish(self, result: LanguageResult, run_dir: RunDirPaths) -> Summary:
        """What could not be written is in the summary as `unsaved`; nothing is raised for it."""
        self.progress(len(self.spec.prompts))
        summary = summarize_language(self.spec, result)
        if self.spec.out is not None:
            write_language_outputs(self.spec.out, self.spec, result, summary, run_dir.path)
        if self._view is not None:
            self._view.close()
        elif self._show:
            print_texts(self.spec.prompts, summary)
        if self._show:
            show_summary(make_console(), summary)
        return summary

    def finish_early(self, error: LaunchError, run_dir: RunDirPaths) -> None:
        """Keep the texts so far, and say so on standard error."""
        if self.spec.out is not None:
            keep_texts(self.spec.out, self.spec, run_dir.stream, str(error))
