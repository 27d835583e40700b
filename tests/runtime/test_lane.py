"""Lanes: jobs in order, at most two under way, credit spoken for until they are collected, errors handed over."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest

from paceline.pipeline.load import load_topology
from paceline.pipeline.topology import Topology
from paceline.runtime.actor import Promise, Work
from paceline.runtime.lanes import DEPTH, Lane, Lanes

SLEEP_4 = "topologies/sleep-4.yaml"


class Counting:
    """Gives its frame's number, holds at `gate`, and fails at frame 13."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.threads: set[int] = set()

    def work(self, frame: int, stage: str = "step0", nbytes: int = 100) -> Work:
        return Work(stage, partial(self.run, frame), promises=(Promise(0, 0, nbytes),), context=frame)

    def run(self, frame: int) -> int:
        self.gate.wait()
        self.threads.add(threading.get_ident())
        if frame == 13:
            raise ArithmeticError("thirteen")
        return frame


def until(lane: Lane, count: int) -> None:
    deadline = time.monotonic() + 10
    while len(lane.finished) < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_jobs_are_computed_in_order_on_another_thread_and_two_at_most_are_under_way() -> None:
    stage, told = Counting(), threading.Event()
    lane = Lane("test", None, lambda work, side: None, told.set)
    stage.gate.set()
    seen = []
    for frame in range(6):
        assert not lane.full
        lane.submit(stage.work(frame))
        if frame % 2:
            assert lane.full
            until(lane, DEPTH)
            for _ in range(DEPTH):
                finished = lane.collect()
                assert finished is not None and finished.error is None
                assert finished.end_s >= finished.start_s
                seen.append(finished.output)
            assert lane.idle and lane.collect() is None
    assert seen == list(range(6))
    assert told.is_set()
    assert stage.threads and threading.get_ident() not in stage.threads
    lane.close()


def test_an_error_is_handed_over_and_the_lane_goes_on() -> None:
    stage = Counting()
    stage.gate.set()
    lane = Lane("test", None, lambda work, side: None, lambda: None)
    lane.submit(stage.work(13))
    lane.submit(stage.work(14))
    until(lane, 2)
    first, second = lane.collect(), lane.collect()
    assert first is not None and isinstance(first.error, ArithmeticError) and first.output is None
    assert second is not None and second.error is None
    lane.close()


@pytest.fixture
def topology() -> Topology:
    return load_topology(SLEEP_4)


def test_credit_is_spoken_for_until_a_job_is_collected(topology: Topology) -> None:
    stage = Counting()
    lanes = Lanes(topology, ["step0", "step1"], "cpu", lambda work, side: None, lambda: None)
    lane = lanes.of("step0")
    assert lane is not None and lane is lanes.of("step1"), "a rank computes one thing at a time"
    lanes.submit(lane, stage.work(0))
    lanes.submit(lane, stage.work(1, nbytes=50))
    assert lanes.promised(0, 0) == (2, 150) and lanes.promised(0, 1) == (0, 0)
    stage.gate.set()
    until(lane, 2)
    assert lanes.promised(0, 0) == (2, 150)
    assert [done.work.context for done in lanes.collect()] == [0, 1]
    assert lanes.promised(0, 0) == (0, 0) and lanes.idle
    lanes.close()


def test_what_computes_on_the_cpu_stays_on_the_worker_s_thread() -> None:
    world = load_topology("topologies/world-2.yaml")
    stages = ["source", "step0", "step1"]
    cpu = Lanes(world, stages, "cpu", lambda work, side: None, lambda: None)
    assert [cpu.of(name) for name in stages] == [None, None, None]
