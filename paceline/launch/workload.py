"""What starting, watching and ending a run needs to know of it, whatever it makes: frames or text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from paceline.launch.errors import LaunchError
from paceline.launch.run_dir import RunDirPaths
from paceline.launch.spec_file import write_spec
from paceline.launch.summary import Summary
from paceline.pipeline.topology import Topology
from paceline.runtime.spec import RunSpec

if TYPE_CHECKING:
    from paceline.runtime.language.spec import GenerateSpec

__all__ = ["Workload", "workload_of"]

ResultT = TypeVar("ResultT")


class Workload(ABC, Generic[ResultT]):
    """One run as a launcher sees it. Launchers know no other difference between frames and text.

    `ResultT` is what the leader's rank leaves behind; msgspec can encode it.
    """

    def __init__(self, spec: RunSpec | GenerateSpec) -> None:
        self.spec = spec

    @property
    def topology(self) -> Topology:
        """What runs where."""
        return self.spec.topology

    @property
    def serial(self) -> bool:
        """Whether this is the serial reference, which has one process."""
        return self.spec.serial

    @property
    def out(self) -> Path | None:
        """The user's folder for outputs."""
        return self.spec.out

    @property
    @abstractmethod
    def serial_threads(self) -> int:
        """Threads of the serial reference."""

    @property
    @abstractmethod
    def leader(self) -> int:
        """The rank whose progress is shown and that leaves the result."""

    @property
    def expendable(self) -> Collection[int]:
        """Ranks whose loss does not end the run."""
        return ()

    @abstractmethod
    def rank_name(self, rank: int) -> str:
        """What messages call a rank."""

    def write(self, path: Path) -> None:
        """Write the spec for worker processes."""
        write_spec(path, self.spec)

    @abstractmethod
    def import_worker(self) -> None:
        """Import what a worker needs, so that forked ones have it already."""

    @abstractmethod
    def work(self, rank: int, world_size: int, run_dir: RunDirPaths, progress: Callable[[int], None]) -> ResultT | None:
        """In a worker: run one rank. Returns the result on the leader, None elsewhere."""

    @abstractmethod
    def work_serially(self, run_dir: RunDirPaths, progress: Callable[[int], None]) -> ResultT:
        """In a worker: run the serial reference."""

    @abstractmethod
    def decode(self, data: bytes) -> ResultT:
        """Read the result that the leader left. Raises `msgspec.DecodeError`."""

    def begin(self, run_dir: RunDirPaths) -> None:
        """On the leader's side: the run is about to begin in this folder."""

    @abstractmethod
    def progress(self, count: int) -> None:
        """On the leader's side: so many frames or sessions are done. Called now and then."""

    @abstractmethod
    def finish(self, result: ResultT, run_dir: RunDirPaths) -> Summary:
        """On the leader's side: sum the run up, show it, and write the outputs.

        Raises `OutputsError` where an output could not be written, after everything else.
        """

    @abstractmethod
    def finish_early(self, error: LaunchError, run_dir: RunDirPaths) -> None:
        """On the leader's side: keep in `out` what was done before `error` ended the run. Raises nothing of its own."""


def workload_of(spec: RunSpec | GenerateSpec) -> Workload[Any]:
    """The workload of a spec, for a worker that has nothing but the spec."""
    # Imported here: text brings Transformers, which frames do without.
    if isinstance(spec, RunSpec):
        from paceline.launch.frames import FrameWorkload

        return FrameWorkload(spec)
    from paceline.launch.language.texts import TextWorkload
    from paceline.runtime.language.models import Models

    return TextWorkload(spec, Models.of(spec))
