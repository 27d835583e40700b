"""What the actors of a language workload share: their mailbox, what forwards cost, and what they report."""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import msgspec

from paceline.pipeline.speculation.counters import Counters
from paceline.runtime.actor import Done, Work
from paceline.runtime.endpoint import Endpoint
from paceline.runtime.language.mailbox import Mailbox
from paceline.runtime.language.roles import Roles
from paceline.runtime.result import RankReport
from paceline.runtime.spec import GenerateSpec
from paceline.runtime.timeline import Span
from paceline.stages.lm.tiered_kv import TieredKV

__all__ = ["LanguageActor", "Progress"]

Progress = Callable[[int], None]

_PASSES_KEPT = 4096


class LanguageActor(ABC):
    """A role of a language workload. It has one forward under way at a time, and handles messages between forwards."""

    role = ""

    def __init__(
        self, spec: GenerateSpec, rank: int, endpoint: Endpoint, notify: Callable[[], None], stage: str
    ) -> None:
        """`notify` shows the progress; `stage` is the name of the actor's stage in the topology."""
        self.spec, self.rank, self.endpoint, self.notify, self.stage_name = spec, rank, endpoint, notify, stage
        self.topology = spec.topology
        self.roles = Roles.of(self.topology)
        self.mailbox = Mailbox(endpoint)
        self.counters = Counters()
        self.tiers: TieredKV | None = None
        self.failures: list[str] = []
        """What went wrong with single sessions here, and why"""
        self.done = 0
        """What the progress board shows"""
        self.busy = False
        """Whether a forward is under way"""
        self.ended = False
        """Whether the leader has ended the run"""
        self._passes = self._tokens = 0
        self._times: deque[float] = deque(maxlen=_PASSES_KEPT)

    def start(self) -> None:
        """Show that there is progress to come; models are loaded and need no warm-up."""
        self.notify()

    @abstractmethod
    def on_items(self) -> bool:
        """Take messages, unless a forward is under way."""

    @abstractmethod
    def ready(self) -> Work | None:
        """The next forward."""

    @abstractmethod
    def on_done(self, done: Done) -> None:
        """Handle the output of a forward."""

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether nothing is left to do."""

    def send(self) -> None:
        """Send what waits in the mailbox, as far as there is credit."""
        self.mailbox.send()

    @property
    def pending(self) -> bool:
        """Whether a message waits for credit."""
        return self.mailbox.pending

    def on_end(self) -> None:
        """The leader has ended the run."""
        self.ended = True

    @property
    def progress(self) -> int:
        """Sessions that are over."""
        return self.done

    def patience(self) -> float:
        """Only news brings work."""
        return math.inf

    def work(self, compute: Callable[[], Any], spans: tuple[Span, ...], context: Any) -> Work:
        """A forward; until it is done no message is handled."""
        self.busy = True
        key = ""
        if spans and self.topology.inject.jitter_ms:
            first = spans[0]
            key = f"{first.stage} {first.session} {first.kind} {first.rows} {self._passes}"
        return Work(self.stage_name, compute, spans, key=key, context=context)

    def passed(self, done: Done, tokens: int) -> None:
        """Count a forward of so many tokens."""
        self.busy = False
        if done.work.spans:
            self._times.append(done.end_s - done.start_s)
            self._passes += 1
            self._tokens += tokens

    @abstractmethod
    def stop(self) -> None:
        """Complete the counters, after the last forward."""

    def close(self) -> None:
        """Free what outlives sessions; after the report."""
        if self.tiers is not None:
            self.tiers.close()

    def report(self, report: RankReport) -> RankReport:
        """What this rank forwarded, and what became of drafts and sessions here."""
        return msgspec.structs.replace(
            report,
            role=self.role,
            passes=self._passes,
            tokens=self._tokens,
            pass_ms=1e3 * statistics.median(self._times) if self._times else 0.0,
            counters=asdict(self.counters),
            tiers=None if self.tiers is None else self.tiers.statistics(),
            history=None if self.tiers is None else self.tiers.history(),
            failures=self.failures,
        )
