"""What a worker drives: actors, the work that they ask for, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from paceline.runtime.result import RankReport
from paceline.runtime.timeline import Span

__all__ = ["Actor", "Done", "Promise", "Work"]


@dataclass(frozen=True, slots=True)
class Promise:
    """An item that work will send: credit that is reserved until the work is done."""

    edge: int
    session: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Work:
    """One computation. `compute` runs on a lane's thread where the stage has a lane, else on the worker's thread."""

    stage: str
    compute: Callable[[], Any]
    spans: tuple[Span, ...] = ()
    """What the timeline records of it, one span for each session. Work without spans is not counted as busy."""
    promises: tuple[Promise, ...] = ()
    key: str = ""
    """What injected jitter is a function of."""
    context: Any = None
    """Whatever the actor needs to know when the work is done."""


@dataclass(frozen=True, slots=True)
class Done:
    """Work that has run, from when to when, with its output or the error that it raised."""

    work: Work
    start_s: float
    end_s: float
    output: Any = None
    error: Exception | None = None

    def result(self) -> Any:
        """The output. Raises the error of the computation."""
        if self.error is not None:
            raise self.error
        return self.output


class Actor(Protocol):
    """A state machine on one rank: a set of program streams, a drafter, a verifier or the leader.

    The worker calls everything here on its own thread, in this order: `start`, then in each iteration `on_items`,
    `ready` and `send`, and `on_done` when work has run. It goes on until all actors are `finished` and no work is
    left; then it calls `stop`, `report` and `close`.
    """

    def start(self) -> None:
        """Prepare before the ranks connect, for example by computing once on dummy data."""

    def on_items(self) -> bool:
        """Handle what has arrived. Returns whether there was anything. Never waits for credit to send."""

    def ready(self) -> Work | None:
        """The next work; None if there is none now."""

    def on_done(self, done: Done) -> None:
        """Handle the output of work. Work of one stage comes back in the order of `ready`. Raises its error."""

    def send(self) -> None:
        """Send what has waited for credit, as far as there is credit now."""

    @property
    def pending(self) -> bool:
        """Whether something waits for credit to be sent."""

    def on_end(self) -> None:
        """The leader has ended the run. An actor that knows its own end ignores it."""

    @property
    def finished(self) -> bool:
        """Whether nothing is left to receive, compute or send."""

    @property
    def progress(self) -> int:
        """What the progress board shows."""

    def patience(self) -> float:
        """Seconds until `ready` should be called again even if nothing arrives; infinite if news is enough."""

    def stop(self) -> None:
        """Close output files, after the last work and before the report."""

    def report(self, report: RankReport) -> RankReport:
        """The report of the rank with what this actor knows filled in."""

    def close(self) -> None:
        """Free what outlives sessions, after the report. Called whatever happened before."""
