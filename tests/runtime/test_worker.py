"""What the worker's loop promises to any actor, shown with tiny actors of its own on one rank or two."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from paceline.pipeline.placement import Route
from paceline.pipeline.topology import SleepTopology
from paceline.runtime.actor import Done, Promise, Work
from paceline.runtime.endpoint import Endpoint
from paceline.runtime.rendezvous import Rendezvous
from paceline.runtime.result import EVENTS_FILE, Event, RankReport, merge
from paceline.runtime.spool import read_spool
from paceline.runtime.timeline import Span
from paceline.runtime.worker import Worker
from paceline.stages.item import Item, Key
from tests.harness import free_port

EDGE = 0
NBYTES = 8


def topology(ranks: int, via: str = "zmq", inflight: int = 2, kind: str = "sleep") -> SleepTopology:
    """A source and a sink with two stages between them that sleep; on one rank, or the sink's side on another."""
    far = "g" if ranks == 1 else "h"
    groups = {"g": {"ranks": 1}} | ({} if ranks == 1 else {"h": {"ranks": 1}})
    edge = {"via": via, "inflight": inflight, "bytes": 1 << 16}
    return SleepTopology.model_validate(
        {
            "name": "loop",
            "workload": "sleep",
            "groups": groups,
            "stages": {
                "a": {"kind": "source", "group": "g"},
                "s": {"kind": "sleep", "group": "g", "ms": 1},
                "t": {"kind": "sleep", "group": far, "ms": 1},
                "b": {"kind": "sink", "group": "g"},
            },
            "edges": [
                {"from": "a", "to": "t", **edge},
                {"from": "t", "to": "s", **edge},
                {"from": "s", "to": "b", **edge, "via": "local"},
            ],
            "network": {"connect_timeout_s": 20},
        }
    )


class Tiny:
    """Counts what the worker calls. `compute` is called for each of `count` pieces of work."""

    def __init__(self, stage: str, count: int, compute: Callable[[int], Any] = lambda index: index) -> None:
        self.stage, self.count, self.compute = stage, count, compute
        self.calls: list[str] = []
        self.outputs: list[Any] = []
        self.begun = 0
        self.told_end = False

    def start(self) -> None:
        self.calls.append("start")

    def on_items(self) -> bool:
        return False

    def ready(self) -> Work | None:
        if self.begun >= self.count:
            return None
        self.begun += 1
        index = self.begun - 1
        span = Span(self.stage, 0, "sleep", ((index, 0),))
        return Work(self.stage, lambda: self.compute(index), (span,), context=index)

    def on_done(self, done: Done) -> None:
        self.outputs.append(done.result())

    def send(self) -> None:
        """Nothing to send."""

    @property
    def pending(self) -> bool:
        return False

    def on_end(self) -> None:
        self.told_end = True

    @property
    def finished(self) -> bool:
        return len(self.outputs) == self.count

    @property
    def progress(self) -> int:
        return len(self.outputs)

    def patience(self) -> float:
        return math.inf

    def stop(self) -> None:
        self.calls.append("stop")

    def report(self, report: RankReport) -> RankReport:
        self.calls.append("report")
        return msgspec.structs.replace(report, failures=[*report.failures, f"{self.stage} {len(self.outputs)}"])

    def close(self) -> None:
        self.calls.append("close")


class Sending(Tiny):
    """Sends each output by the edge, as far as there is credit, and never computes ahead of it."""

    def __init__(self, stage: str, count: int, endpoint: Endpoint, target: int) -> None:
        super().__init__(stage, count)
        self.endpoint, self.target = endpoint, target
        self.waiting: list[int] = []

    def on_done(self, done: Done) -> None:
        super().on_done(done)
        self.waiting.append(done.result())

    def send(self) -> None:
        while self.waiting and self.endpoint.can_send(EDGE, self.target, 0, 1, NBYTES):
            number = self.waiting.pop(0)
            self.endpoint.send(self.target, Item(Key(EDGE, 0, number), (torch.tensor(number),)))

    @property
    def pending(self) -> bool:
        return bool(self.waiting)


class Receiving(Tiny):
    """Takes an item, then computes for a while; it ends when it is told to and all has come."""

    def __init__(self, stage: str, count: int, endpoint: Endpoint) -> None:
        super().__init__(stage, count, compute=lambda index: time.sleep(0.002))
        self.endpoint = endpoint
        self.came: list[int] = []

    def ready(self) -> Work | None:
        key = Key(EDGE, 0, len(self.came))
        if not self.endpoint.has(key):
            return None
        self.came.append(int(self.endpoint.take(key).tensors[0]))
        return super().ready()

    @property
    def finished(self) -> bool:
        return self.told_end and super().finished


def worker_of(
    spec: SleepTopology, endpoint: Endpoint, folder: Path, stages: list[str],
    told: Callable[[int], None] = lambda done: None,
    events: bool = False, reports_s: float | None = None,
) -> Worker:  # fmt: skip
    return Worker(spec, endpoint, folder, "g", "cpu", stages, 0, told, events, reports_s)


def run_alone(folder: Path, actors: dict[str, Tiny], **more: Any) -> tuple[Worker, list[RankReport]]:
    """One rank with an actor for each stage."""
    spec = topology(1, "local")
    with Endpoint(Rendezvous(0, 1), spec, []) as endpoint:
        worker = worker_of(spec, endpoint, folder, list(actors), **more)
        for stage, actor in actors.items():
            worker.add(actor, [stage])
        reports = worker.run()
    assert reports is not None
    return worker, reports


def test_actors_take_turns(tmp_path: Path) -> None:
    order: list[str] = []
    actors = {
        name: Tiny(name, 200, lambda index, name=name: order.append(name))  # type: ignore[misc]
        for name in ("a", "b")
    }
    run_alone(tmp_path, actors)
    # Neither has ever to wait for more than two pieces of the other's work.
    longest = max(len(run) for run in "".join(order).replace("ab", "a b").replace("ba", "b a").split())
    assert (order.count("a"), order.count("b")) == (200, 200)
    assert longest <= 2


@pytest.mark.parametrize("stage", ["a", "s"])
def test_work_comes_back_in_order_whether_it_has_a_lane_or_not(tmp_path: Path, stage: str) -> None:
    threads: set[int] = set()

    def compute(index: int) -> int:
        threads.add(threading.get_ident())
        return index

    actor = Tiny(stage, 50, compute)
    ready = actor.ready
    worker: list[Worker] = []

    def ready_if_not_full() -> Work | None:
        lane = worker[0].lanes.of(stage)
        return None if lane is not None and lane.full else ready()

    actor.ready = ready_if_not_full  # type: ignore[method-assign]
    spec = topology(1, "local")
    with Endpoint(Rendezvous(0, 1), spec, []) as endpoint:
        worker.append(worker_of(spec, endpoint, tmp_path, [stage]))
        worker[0].add(actor, [stage])
        worker[0].run()
    assert actor.outputs == list(range(50))
    assert (threads == {threading.get_ident()}) is (stage == "a")


def test_the_heartbeat_goes_on_while_a_lane_computes(tmp_path: Path) -> None:
    told: list[float] = []
    slept: list[float] = []

    def compute(index: int) -> None:
        slept.append(time.monotonic())
        time.sleep(0.6)
        slept.append(time.monotonic())

    run_alone(tmp_path, {"s": Tiny("s", 1, compute)}, told=lambda done: told.append(time.monotonic()))
    assert sum(slept[0] < when < slept[1] for when in told) >= 3


def test_the_end_is_in_order_and_in_the_report(tmp_path: Path) -> None:
    actors = {"a": Tiny("a", 3), "b": Tiny("b", 2)}
    _, (report,) = run_alone(tmp_path, actors, events=True)
    assert [actor.calls for actor in actors.values()] == [["start", "stop", "report", "close"]] * 2
    assert sorted(report.failures) == ["a 3", "b 2"]
    events = read_spool(tmp_path / EVENTS_FILE.format(0), Event)
    work = [event for event in events if event.kind != "wait"]
    assert sorted((event.stage, event.frame) for event in work) == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)]
    assert abs(sum(event.end_s - event.start_s for event in work) - report.busy_s) < 1e-6
    assert report.busy_s + report.wait_s <= report.wall_s
    assert merge([report]).ranks == [report]


@pytest.mark.parametrize("stage", ["a", "s"])
def test_an_error_of_work_ends_the_run_and_actors_are_closed(tmp_path: Path, stage: str) -> None:
    def compute(index: int) -> int:
        if index == 2:
            raise ArithmeticError("two")
        return index

    actors = {stage: Tiny(stage, 5, compute), "b": Tiny("b", 1)}
    with pytest.raises(ArithmeticError, match="two"):
        run_alone(tmp_path, actors)
    assert [actor.calls for actor in actors.values()] == [["start", "close"]] * 2


def test_promised_credit_is_reserved_until_the_work_is_done(tmp_path: Path) -> None:
    spec = topology(1, "local")
    gate = threading.Event()
    seen: list[tuple[int, int]] = []
    with Endpoint(Rendezvous(0, 1), spec, []) as endpoint:
        worker = worker_of(spec, endpoint, tmp_path, ["s"])

        class Promising(Tiny):
            def ready(self) -> Work | None:
                seen.append(worker.lanes.promised(EDGE, 0))
                if self.begun:
                    gate.set()
                    return None
                self.begun += 1
                return Work("s", gate.wait, promises=(Promise(EDGE, 0, NBYTES), Promise(EDGE, 0, NBYTES)))

        worker.add(Promising("s", 1), ["s"])
        worker.run()
        assert worker.lanes.promised(EDGE, 0) == (0, 0)
    assert seen[0] == (0, 0)
    assert seen[1] == (2, 2 * NBYTES)


def two_ranks(
    folder: Path, inflight: int, make: Callable[[int, Endpoint], Tiny], reports_s: float | None = None,
    expendable: tuple[int, ...] = (),
) -> tuple[list[Tiny], list[RankReport], list[Endpoint]]:  # fmt: skip
    """An actor on each of two ranks, as threads with real endpoints; rank 0 leads."""
    spec, port = topology(2, inflight=inflight), free_port()
    actors: list[Any] = [None, None]
    endpoints: list[Any] = [None, None]
    found: list[list[RankReport] | None] = [None, None]
    errors: list[BaseException] = []

    def rank(number: int) -> None:
        try:
            rendezvous = Rendezvous(number, 2, "127.0.0.1", port, 20.0)
            with Endpoint(rendezvous, spec, [Route(EDGE, 0, 1)], expendable=expendable) as endpoint:
                stage = "a" if number == 0 else "t"
                endpoints[number] = endpoint
                actors[number] = make(number, endpoint)
                worker = worker_of(spec, endpoint, folder, [stage], reports_s=reports_s)
                worker.add(actors[number], [stage])
                found[number] = worker.run()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=rank, args=(number,), daemon=True) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not errors, errors
    assert found[1] is None and found[0] is not None
    return actors, found[0], endpoints


@pytest.mark.parametrize("inflight", [1, 3])
def test_a_leader_ends_the_run_after_all_is_sent_within_credit(tmp_path: Path, inflight: int) -> None:
    def make(number: int, endpoint: Endpoint) -> Tiny:
        return Sending("a", 40, endpoint, 1) if number == 0 else Receiving("t", 40, endpoint)

    (_, receiver), reports, endpoints = two_ranks(tmp_path, inflight, make)
    # The sender's work was done at once; what waited for credit was sent before the end was told.
    assert isinstance(receiver, Receiving)
    assert receiver.came == list(range(40))
    assert receiver.told_end
    assert [report.rank for report in reports] == [0, 1]
    assert reports[1].failures == ["t 40"]
    assert endpoints[0].statistics()[0].peak_items == inflight


def test_a_rank_that_does_not_end_is_left_out_of_the_reports(tmp_path: Path) -> None:
    release = threading.Event()

    class Hanging(Tiny):
        @property
        def finished(self) -> bool:
            return release.wait(0) and super().finished

    def make(number: int, endpoint: Endpoint) -> Tiny:
        return Tiny("a", 1) if number == 0 else Hanging("t", 1)

    timer = threading.Timer(1.5, release.set)
    timer.start()
    began = time.monotonic()
    _, reports, _ = two_ranks(tmp_path, 2, make, reports_s=0.3)
    assert [report.rank for report in reports] == [0]
    # The leader did not wait; the other rank ended in order when it could.
    assert 1.0 < time.monotonic() - began < 10
