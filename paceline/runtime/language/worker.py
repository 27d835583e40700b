"""What the workers of a language workload share: models, the loop around one turn, reports."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

import msgspec
import torch

from paceline.kernels.philox import Purpose, words
from paceline.pipeline.placement import Placement
from paceline.pipeline.speculation.counters import Counters
from paceline.runtime.clock import now
from paceline.runtime.device import own_device
from paceline.runtime.endpoint import Endpoint
from paceline.runtime.errors import PeerLost
from paceline.runtime.language.post import Post
from paceline.runtime.language.result import LanguageReport
from paceline.runtime.language.roles import Roles
from paceline.runtime.language.spec import GenerateSpec
from paceline.runtime.report import peak_rss_bytes
from paceline.stages.lm.tiered_kv import TieredKV

__all__ = ["DONE", "REPORT", "LanguageWorker", "Progress"]

DONE, REPORT = "done", "report"
Progress = Callable[[int], None]

_TELL_EVERY_S = 0.1
_PASSES_KEPT = 4096


class LanguageWorker:
    """One rank. Subclasses do their work in `turn`, which says whether there was any."""

    role = ""

    def __init__(self, spec: GenerateSpec, rank: int, endpoint: Endpoint, progress: Progress) -> None:
        self.spec, self.rank, self.endpoint, self.progress = spec, rank, endpoint, progress
        self.topology = spec.topology
        self.group = Placement(self.topology).group_of_rank(rank)
        group = self.topology.groups[self.group]
        torch.set_num_threads(group.threads)
        self.device = own_device(group.device)
        self.roles = Roles.of(self.topology)
        self.post = Post(endpoint)
        self.counters = Counters()
        self.tiers: TieredKV | None = None
        self.failures: list[str] = []
        """What went wrong with single sessions here, and why"""
        self.done = 0
        """What the progress board shows"""
        self._finished = self._told_to_end = False
        self._busy_s = self._wait_s = self._wall_s = 0.0
        self._passes = self._tokens = 0
        self._times: deque[float] = deque(maxlen=_PASSES_KEPT)
        self._told_s = 0.0
        self._turns = 0

    def turn(self) -> bool:
        """Do what can be done now; False if there was nothing."""
        raise NotImplementedError

    @property
    def expecting(self) -> bool:
        """Whether something has still to come or to be sent before this rank may end."""
        return False

    def patience(self) -> float:
        """Most seconds to wait for news."""
        return _TELL_EVERY_S

    def work(self) -> None:
        """Turn until the work is done."""
        self.endpoint.start()
        self.progress(self.done)
        started = now()
        while not self._finished:
            self.endpoint.pump()
            seen = self.endpoint.version
            self._hear()
            worked = self.turn()
            if worked:
                self._delay()
            self.post.send()
            self._finished = self._finished or (self._told_to_end and not worked and not self.expecting)
            if not worked and not self._finished:
                begin = now()
                self.endpoint.wait(seen, self.patience())
                self._wait_s += now() - begin
            if now() - self._told_s > _TELL_EVERY_S:
                self.progress(self.done)
                self._told_s = now()
        self._wall_s = now() - started

    def _delay(self) -> None:
        """Injected jitter before what a turn made is sent: a function of the rank and of how often it came so far."""
        jitter = self.topology.inject.jitter_ms / 1000
        if jitter:
            self._turns += 1
            place = self.rank << 32 | self._turns
            time.sleep(jitter * int(words(self.topology.inject.seed, place, Purpose.jitter, 1)[0]) / 2**32)

    def _hear(self) -> None:
        for _, kind, _ in self.endpoint.controls():
            if kind == DONE:
                self._told_to_end = True

    @contextmanager
    def forward(self, tokens: int) -> Iterator[None]:
        """Count and time one forward of the model."""
        begin = now()
        yield
        spent = now() - begin
        self._busy_s += spent
        self._times.append(spent)
        self._passes += 1
        self._tokens += tokens

    @property
    def pass_ms(self) -> float:
        """Median milliseconds of a forward, lately."""
        return 1e3 * statistics.median(self._times) if self._times else 0.0

    def close(self) -> None:
        """Free what outlives sessions; after the report."""
        if self.tiers is not None:
            self.tiers.close()

    def report(self) -> LanguageReport:
        """What this rank saw."""
        return LanguageReport(
            rank=self.rank, group=self.group, role=self.role, device=self.device, threads=torch.get_num_threads(),
            busy_s=self._busy_s, wait_s=self._wait_s, wall_s=self._wall_s, passes=self._passes, tokens=self._tokens,
            pass_ms=self.pass_ms, counters=asdict(self.counters), peak_rss_bytes=peak_rss_bytes(),
            tiers=None if self.tiers is None else self.tiers.statistics(),
            history=None if self.tiers is None else self.tiers.history(), failures=self.failures,
        )  # fmt: skip

    def send_report(self) -> None:
        """Tell the first verifier."""
        self.endpoint.control(self.roles.first, REPORT, msgspec.msgpack.encode(self.report()))

    def gather(self, timeout_s: float) -> list[LanguageReport]:
        """On the first verifier: end all others and take their reports; who does not answer in time is left out."""
        others = [rank for rank in range(self.topology.world_size) if rank != self.rank]
        end = now() + timeout_s
        # The last verdicts are part of what they report.
        while self.post.pending and now() < end:
            seen = self.endpoint.version
            self.post.send()
            if self.post.pending:
                self.endpoint.wait(seen, 0.02)
                self.progress(self.done)
        for rank in others:
            if rank not in self.endpoint.lost:
                self._end(rank)
        found = [self.report()]
        while len(found) <= sum(rank not in self.endpoint.lost for rank in others) and now() < end:
            self.endpoint.pump()
            seen = self.endpoint.version
            payloads = [payload for _, kind, payload in self.endpoint.controls() if kind == REPORT]
            found += [msgspec.msgpack.decode(payload, type=LanguageReport) for payload in payloads]
            if not payloads:
                self.endpoint.wait(seen, 0.02)
                self.progress(self.done)
        return found

    def _end(self, rank: int) -> None:
        try:
            self.endpoint.control(rank, DONE)
        except PeerLost:
            # One that the run can do without may go at any moment; any other is reported by the endpoint.
            self.endpoint.lost.add(rank)
