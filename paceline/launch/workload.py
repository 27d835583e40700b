"""One run, whatever it makes: what is checked and planned before it, how it is run, and what becomes of its result."""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self, TypeVar

from paceline.launch.errors import ArgumentError, LaunchError, OutputsError, RunFailedError
from paceline.launch.run_dir import RunDirPaths
from paceline.launch.spec_file import write_spec
from paceline.launch.summary import Summary
from paceline.pipeline.topology import Topology
from paceline.runtime.result import Result
from paceline.runtime.spec import GenerateSpec, RunSpec

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "NOBODY",
    "Audience",
    "Outputs",
    "RecordOptions",
    "Recording",
    "Workload",
    "WorkloadPlan",
    "workload_class",
    "workload_of",
    "wrong_command",
]


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """Options of `paceline trace record`. A world takes `frames` and `sessions`, a language model the others."""

    seed: int
    frames: int = 64
    sessions: int = 1
    prompt: tuple[str, ...] = ()
    prompts: Path | None = None
    """A file of prompts, `-` for standard input."""
    max_tokens: int = 128
    temperature: float = 0.7
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Recording:
    """Steps (forwards of the model), most blocks at a time, bytes of the file."""

    steps: int
    blocks: int
    bytes: int


ResultT = TypeVar("ResultT", bound=Result[Any])


def _ignore(*_: object) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Audience:
    """Who is told how a run goes."""

    progress: Callable[[int], None] = _ignore
    """Called now and then with the number of frames or sessions that are done."""
    summary: Callable[[Workload[Any], Summary], None] = _ignore
    """Called once, before pictures are made: they take time, and may fail."""
    writing: Callable[[str, int, int], None] = _ignore
    """Called before each picture with its name, how many are done, and how many there are."""


NOBODY = Audience()
"""Nobody is told."""


@dataclass(frozen=True, slots=True)
class WorkloadPlan:
    """What a topology will do, for programs and for people."""

    fields: Mapping[str, Any]
    """Plain data that JSON can hold."""
    show: Callable[[Console], None]
    live: bool
    """Whether no order of events can deadlock it."""


class Outputs(Protocol):
    """Everything that a run leaves in its folder for outputs. Both methods return what could not be written, with the
    reasons."""

    def write_results(self, summary: Summary) -> list[str]:
        """Write `summary.json` and what the run made."""
        ...

    def write_pictures(self, summary: Summary, watch: Callable[[str, int, int], None]) -> list[str]:
        """Write trace and pictures; `watch` is told of each as `Audience.writing` is."""
        ...


class Workload(ABC, Generic[ResultT]):
    """One run of a topology. Commands and launchers know no other difference between frames and text.

    `ResultT` is what the leader's rank leaves behind; msgspec can encode it.
    """

    command: ClassVar[str]
    """The command that runs it."""
    makes: ClassVar[str]
    """What comes out, as messages call it."""

    def __init__(self, spec: RunSpec | GenerateSpec, audience: Audience = NOBODY) -> None:
        self.spec = spec
        self.audience = audience

    @classmethod
    @abstractmethod
    def smallest(cls, topology: Any) -> Self:
        """The smallest run of a topology of this workload; what it needs, every run needs."""

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

    # -- before it starts ----------------------------------------------------------------------------------------------

    @abstractmethod
    def check_files(self) -> None:
        """Check the files that the topology names, and its memory tiers for the models in them. Raises
        `ArgumentError`."""

    @abstractmethod
    def check(self, file: Path) -> None:
        """Check everything that can be known before a process is started; `file` is the topology's. Raises
        `ArgumentError`."""

    @abstractmethod
    def plan(self, file: Path, frames: int | None, sessions: int | None, measured: Path | None) -> WorkloadPlan:
        """Plan the topology, for so many frames and sessions and with the stage costs of a `summary.json`, where its
        workload plans with them. Raises `ArgumentError`."""

    @abstractmethod
    def record(self, file: Path, out: Path, options: RecordOptions) -> Recording:
        """Run in this process and write the attention masses of every pass to the trace `out`. Raises
        `ArgumentError`."""

    # -- in a launcher and its workers ---------------------------------------------------------------------------------

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

    def progress(self, count: int) -> None:
        """On the leader's side: so many frames or sessions are done. Called now and then."""
        self.audience.progress(count)

    # -- when it is over -----------------------------------------------------------------------------------------------

    def finish(self, result: ResultT, run_dir: RunDirPaths) -> Summary:
        """On the leader's side: sum the run up, tell the audience, and write the outputs.

        Raises `OutputsError` where an output could not be written, after everything else.
        """
        return self.conclude(self.with_records(result, run_dir), run_dir, self.audience)

    def conclude(self, result: ResultT, run_dir: RunDirPaths, audience: Audience) -> Summary:
        """`finish` for a result that was read back. An output that fails leaves the others."""
        summary = self.summarize(result)
        if self.out is None:
            audience.summary(self, summary)
            return summary
        outputs = self.outputs(self.out, result, run_dir)
        lost = [file for report in result.ranks for file in report.unsaved]
        summary["warnings"] += [f"not saved: {file}" for file in lost]
        lost += outputs.write_results(summary)
        audience.summary(self, summary)
        lost += outputs.write_pictures(summary, audience.writing)
        if lost:
            raise OutputsError(self.out, lost)
        return summary

    @abstractmethod
    def finish_early(self, error: LaunchError, run_dir: RunDirPaths) -> None:
        """On the leader's side: keep in `out` what was done before `error` ended the run. Raises nothing of its own."""

    def with_records(self, result: ResultT, run_dir: RunDirPaths) -> ResultT:
        """The result with what ranks wrote down of it during the run."""
        return result

    @abstractmethod
    def summarize(self, result: ResultT) -> Summary:
        """Sum the run up."""

    @abstractmethod
    def outputs(self, out: Path, result: ResultT, run_dir: RunDirPaths) -> Outputs:
        """What is written into the folder `out`."""

    @abstractmethod
    def show(self, summary: Summary) -> None:
        """Print for people what came out."""

    @abstractmethod
    def failed(self, session: Mapping[str, Any]) -> bool:
        """Whether a session of a summary failed."""

    def check_sessions(self, summary: Summary) -> None:
        """Raise `RunFailedError` for a run of which no session came through."""
        if all(map(self.failed, summary["sessions"])):
            raise RunFailedError("every session failed: " + "; ".join(summary["warnings"]))


# Imported where they are chosen: text brings Transformers, which frames do without.
_CLASSES = {
    "world": "paceline.launch.frames:WorldWorkload",
    "sleep": "paceline.launch.frames:FrameWorkload",
    "language": "paceline.launch.language.texts:TextWorkload",
}


def workload_class(topology: Topology) -> type[Workload[Any]]:
    """The class of a topology's workload."""
    found: type[Workload[Any]] = pkgutil.resolve_name(_CLASSES[topology.workload])
    return found


def workload_of(spec: RunSpec | GenerateSpec) -> Workload[Any]:
    """The workload of a spec, for a worker that has nothing but the spec."""
    return workload_class(spec.topology)(spec)


def wrong_command(file: Path, topology: Topology) -> ArgumentError:
    """The error for a topology that another command runs."""
    kind = workload_class(topology)
    return ArgumentError(f"{file} makes {kind.makes}; start it with `paceline {kind.command}`")
