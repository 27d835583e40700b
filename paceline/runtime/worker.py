"""The worker of one rank: one loop that receives, computes and sends for the actors of any workload.

All decisions are the actors'. The worker brings them time, items and credits, and owns what they share: lanes, the
timeline, injected jitter, the heartbeat, the end of the run and the reports.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from paceline.kernels.philox import Purpose, words
from paceline.pipeline.topology import Topology
from paceline.runtime.actor import Actor, Done, Work
from paceline.runtime.endpoint import Endpoint
from paceline.runtime.lanes import Lanes, computed
from paceline.runtime.report_exchange import ReportExchange
from paceline.runtime.result import RankReport, peak_rss_bytes
from paceline.runtime.timeline import Timeline, now

__all__ = ["SWITCH_INTERVAL_S", "Worker", "delay_share"]


SWITCH_INTERVAL_S = 0.0005
"""How long the worker thread may keep the interpreter from the threads that deliver; Python's own 5 ms is a pass."""

_HEARTBEAT_S = 0.1
"""Most seconds between two heartbeats while the worker waits."""


class Worker:
    """One rank of a run. Add actors with `add`, then `run`."""

    def __init__(
        self,
        topology: Topology,
        endpoint: Endpoint,
        run_dir: Path,
        group: str,
        device: str,
        stages: Iterable[str],
        leader: int,
        progress: Callable[[int], None],
        events: bool,
        reports_s: float | None = None,
    ) -> None:
        """`stages` are those of this rank. `leader` is the rank that ends the run and gathers the reports, within
        `reports_s` seconds; None waits for all. `events` writes the timeline to files in `run_dir`. Raises `OSError`
        where these can't be made."""
        self.topology, self.endpoint = topology, endpoint
        self.stages = sorted(stages)
        self.lanes = Lanes(topology, self.stages, device, self._delay, endpoint.wake)
        self.timeline = Timeline(endpoint.rank, run_dir if events else None)
        self.actors: list[Actor] = []
        self._group, self._device, self._leader = group, device, leader
        self._progress, self._events, self._reports_s = progress, events, reports_s
        self._owners: dict[str, Actor] = {}
        self._told_s = 0.0
        self._ended = False
        self._jitter_s = topology.inject.jitter_ms / 1000
        self._exchange = ReportExchange(endpoint, run_dir, topology.network.max_message, self._heartbeat)

    def add(self, actor: Actor, stages: Iterable[str]) -> None:
        """Drive an actor, which does the work of some stages of this rank."""
        self.actors.append(actor)
        self._owners |= dict.fromkeys(stages, actor)

    def run(self) -> list[RankReport] | None:
        """Run all actors to their end and exchange reports. Returns those of all ranks that reported on the leader, its
        own first, and None elsewhere. Raises what an actor or a channel raised."""
        try:
            for actor in self.actors:
                actor.start()
            self.endpoint.start()
            self.notify()
            started = now()
            self._loop()
            wall_s = now() - started
            self.lanes.close()
            return self._reports(wall_s)
        finally:
            for actor in self.actors:
                actor.close()

    # -- the loop ------------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        first = 0
        while not self._over:
            self.endpoint.pump()
            seen = self.endpoint.version
            if not self._ended and self._exchange.ended:
                self._ended = True
                for actor in self.actors:
                    actor.on_end()
            moved = self._collect()
            # Each iteration begins with another actor, so that none is always last.
            for actor in (*self.actors[first:], *self.actors[:first]):
                moved = self._step(actor) or moved
            first = (first + 1) % len(self.actors)
            if not moved and not self._over:
                self._wait(seen)
            self._heartbeat()

    @property
    def _over(self) -> bool:
        return self.lanes.idle and all(actor.finished for actor in self.actors)

    def _step(self, actor: Actor) -> bool:
        """Let an actor receive, start one piece of its work, and send. Returns whether anything was done."""
        moved = actor.on_items()
        work = actor.ready()
        if work is not None:
            moved = True
            self._start(work)
        actor.send()
        return moved

    def _start(self, work: Work) -> None:
        lane = self.lanes.of(work.stage)
        if lane is not None:
            self.lanes.submit(lane, work)
            return
        self._finish(computed(work, self._delay))

    def _collect(self) -> bool:
        """Handle the work that lanes have done; whether there was any."""
        done = self.lanes.collect()
        for each in done:
            self._finish(each)
        return bool(done)

    def _finish(self, done: Done) -> None:
        self._owners[done.work.stage].on_done(done)
        if done.work.spans:
            self.timeline.ran(done.work.spans, done.start_s, done.end_s)

    # -- time ----------------------------------------------------------------------------------------------------------

    def _wait(self, seen: int) -> None:
        start_s = now()
        computing = not self.lanes.idle
        patience_s = min(_HEARTBEAT_S, *(actor.patience() for actor in self.actors))
        self.endpoint.wait(seen, max(0.0, patience_s))
        if not computing:
            self.timeline.waited(start_s, now())

    def _delay(self, work: Work, side: int) -> None:
        """Injected jitter."""
        if self._jitter_s and work.key:
            time.sleep(self._jitter_s * delay_share(self.topology.inject.seed, work.key, side))

    def notify(self) -> None:
        """Show the progress now."""
        self._progress(sum(actor.progress for actor in self.actors))
        self._told_s = now()

    def _heartbeat(self) -> None:
        if now() - self._told_s > _HEARTBEAT_S:
            self.notify()

    # -- the end -------------------------------------------------------------------------------------------------------

    def _reports(self, wall_s: float) -> list[RankReport] | None:
        for actor in self.actors:
            actor.stop()
        self.timeline.close()
        if self.endpoint.rank != self._leader:
            self._exchange.give(self._leader, self._report(wall_s))
            return None
        deadline_s = None if self._reports_s is None else now() + self._reports_s
        self._exchange.end(deadline_s, self._send)
        # Only now: the last messages are part of what is reported.
        return [self._report(wall_s), *self._exchange.gather(self._events, deadline_s)]

    def _send(self) -> bool:
        """Send what still waits for credit; whether all of it is sent."""
        for actor in self.actors:
            actor.send()
        return not any(actor.pending for actor in self.actors)

    def _report(self, wall_s: float) -> RankReport:
        report = RankReport(
            rank=self.endpoint.rank,
            group=self._group,
            host=os.uname().nodename,
            pid=os.getpid(),
            device=self._device,
            threads=torch.get_num_threads(),
            stages=self.stages,
            busy_s=self.timeline.busy_s,
            wall_s=wall_s,
            stage_ms=self.timeline.passes.medians_ms(),
            peak_rss_bytes=peak_rss_bytes(),
            sessions=[],
            edges=self.endpoint.uses(),
            kv_sha256={},
            wait_s=self.timeline.wait_s,
        )
        for actor in self.actors:
            report = actor.report(report)
        return report


def delay_share(seed: int, key: str, side: int) -> float:
    """The share in [0, 1) of `inject.jitter_ms` that work waits before it computes (`side` 0) or sends (1).

    A function of the seed and of the work's key, whatever the time and the place.
    """
    place = int.from_bytes(hashlib.blake2b(f"{key} {side}".encode(), digest_size=8).digest(), "little")
    return int(words(seed, place, Purpose.jitter, 1)[0]) / 2**32
