"""The files of a run that makes frames, in the order in which they are written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from paceline.launch.outputs.write import write_pictures, write_results
from paceline.launch.records import frames_of, truth_of
from paceline.launch.summary import Summary
from paceline.runtime.result import RunResult
from paceline.runtime.spec import RunSpec

__all__ = ["FrameOutputs"]


class FrameOutputs:
    """See `Outputs`."""

    def __init__(self, out: Path, spec: RunSpec, result: RunResult) -> None:
        """Maps the frames that are in `out`, before they get their names: that leaves the maps as they are."""
        self._out, self._spec, self._result = out, spec, result
        self._frames, self._truth = frames_of(out, result.sessions), truth_of(out, result.sessions)

    def write_results(self, summary: Summary) -> list[str]:
        return write_results(self._out, summary, sorted(self._frames))

    def write_pictures(self, summary: Summary, watch: Callable[[str, int, int], None]) -> list[str]:
        return write_pictures(
            self._out, self._spec, self._result, summary, self._frames, self._truth or None, watch
        )  # fmt: skip
