"""One rank of a generation whose processes torchrun started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from paceline.launch.errors import RunFailedError
from paceline.launch.failure import Failure
from paceline.launch.language.outputs import write_language_outputs
from paceline.launch.language.summary import summarize_language
from paceline.launch.run_dir import RunDir
from paceline.launch.summary import Summary
from paceline.launch.torchrun import Launched, record_failure
from paceline.runtime.language.models import Models
from paceline.runtime.language.spec import GenerateSpec

__all__ = ["generate_launched"]


def generate_launched(
    spec: GenerateSpec, models: Models, launched: Launched, watch: Callable[[Path], Callable[[int], None] | None]
) -> Summary | None:
    """Run this process's rank; the summary on the first verifier's, None elsewhere. Raises `RunFailedError`."""
    # Imported here: it brings torch.
    from paceline.runtime.language.run import generate_rank

    with RunDir() as run_dir:
        look = watch(run_dir.stream)

        def progress(done: int) -> None:
            if look is not None:
                look(done)

        try:
            result = generate_rank(
                spec, models, launched.rank, launched.world_size, run_dir.path, progress, run_dir.stream
            )
        except Exception as error:
            failure = Failure.of(launched.rank, error)
            record_failure(failure)
            raise RunFailedError(f"rank {launched.rank}: {failure}", failure.traceback) from error
        if result is None:
            return None
        summary = summarize_language(spec, result)
        if spec.out is not None:
            write_language_outputs(spec.out, spec, result, summary)
        return summary
