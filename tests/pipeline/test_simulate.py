"""The simulator against formulas, and that neither delays nor dispatch order change what is computed."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.pipeline.costs import Costs, Link, busiest_s, costs_from, loop_s
from paceline.pipeline.program import ModelShape, UnitKind
from paceline.pipeline.simulate import StuckError, simulate
from paceline.pipeline.steady import percentile, steady_period, steady_window
from paceline.pipeline.topology import ContextMode, InjectSpec, Topology, Transport
from tests.pipeline.nets import SHAPE, contiguous, sleepers, world

FREE = {transport: Link() for transport in Transport}


def ideal(topology: Topology, links: dict[Transport, Link] | None = None) -> Costs:
    return Costs(costs_from(topology).pass_s, links or FREE)


def widened(topology: Topology, **update: Any) -> Topology:
    return topology.model_copy(update={"edges": tuple(edge.model_copy(update=update) for edge in topology.edges)})


# -- formulas ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ms", "wavefront", "mirrored"),
    [
        # notes/worldmodel.md: a pair of streams takes 2 max t_s one way and max (t_s + t_{S-1-s}) mirrored.
        ((10, 15, 25, 30), 60, 40),
        ((30, 20, 20, 30), 60, 60),
        ((10, 10, 10, 40), 80, 50),
    ],
)
def test_a_pair_of_sessions_takes_what_the_formula_says(ms: tuple[int, ...], wavefront: float, mirrored: float) -> None:
    for schedule, period in (("wavefront", wavefront), ("mirrored", mirrored), ("serial", 2 * sum(ms))):
        topology = sleepers(ms, schedule=schedule)
        costs = ideal(topology)
        simulation = simulate(topology, SHAPE, costs, frames=80, sessions=2)
        assert simulation.period_s == pytest.approx(period / 1000, rel=0.02)
        assert 2 / simulation.frames_per_second == pytest.approx(period / 1000, rel=0.02)
        assert busiest_s(topology, costs, 2) == pytest.approx(period / 1000)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=2, max_size=5))
def test_chains_run_at_their_slowest_stage(ms: list[int]) -> None:
    topology = sleepers(ms)
    found = simulate(topology, SHAPE, ideal(topology), frames=30)
    assert found.period_s == pytest.approx(max(ms) / 1000, rel=0.1)
    assert found.end_s >= 0.0299 * max(ms) + (sum(ms) - max(ms)) / 1000


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=2, max_size=5))
def test_no_pair_beats_the_formula(ms: list[int]) -> None:
    topology = sleepers(ms, schedule="mirrored", inflight=4)
    bound = max(a + b for a, b in zip(ms, reversed(ms), strict=True))
    found = simulate(topology, SHAPE, ideal(topology), frames=30, sessions=2)
    assert 0.0299 * bound <= found.end_s <= 0.033 * bound + 4 * sum(ms) / 1000


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_one_session_in_clean_is_serial_and_several_overlap(steps: int) -> None:
    topology = world(contiguous(steps, range(1, steps + 1)), mode="clean", ms=[10.0] * (steps + 1))
    one = simulate(topology, SHAPE, ideal(topology), frames=24)
    assert one.period_s == pytest.approx((steps + 1) * 0.01) == loop_s(topology, SHAPE, ideal(topology))
    many = simulate(topology, SHAPE, ideal(topology), frames=24, sessions=steps + 1)
    assert 1 / many.frames_per_second == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize("mode", [ContextMode.staggered, ContextMode.matched])
def test_overlapping_modes_reach_the_slowest_step(mode: ContextMode) -> None:
    ms = [10.0, 14.0, 12.0, 9.0, 11.0]
    topology = world(contiguous(4, [1, 2, 3, 4]), mode=mode, ms=ms)
    assert simulate(topology, SHAPE, ideal(topology), frames=40).period_s == pytest.approx(0.014)


@pytest.mark.parametrize("layers", [2, 4, 10])
def test_cascade_pays_one_layer_and_two_hops_which_other_sessions_hide(layers: int) -> None:
    shape = ModelShape(layers, 1000, 1000, 1000)
    links = {**FREE, Transport.dist: Link(latency_s=0.0005)}
    partition, ms = contiguous(3, [1, 2, 3]), [10.0] * 4
    topology = widened(world(partition, ms=ms), inflight=64)
    costs = ideal(topology, links)
    one = simulate(topology, shape, costs, frames=40)
    assert one.period_s == pytest.approx(0.01 * (1 + 1 / layers) + 2 * 0.0005) == loop_s(topology, shape, costs)
    pair = widened(world(partition, ms=ms, schedule="mirrored"), inflight=64)
    both = simulate(pair, shape, costs, frames=40, sessions=2)
    # One pair hides the layer, but two hops stay: a frame may not start before its predecessor is at the next step, and
    # from there the other session's latent is on its way back. A second pair hides those too.
    assert both.period_s == pytest.approx(0.02 + 2 * 0.0005)
    four = simulate(pair, shape, costs, frames=40, sessions=4)
    assert four.period_s == pytest.approx(0.04, rel=0.01)
    assert all(four.bubble(rank) < 0.02 for rank in range(1, 5))


def test_latency_is_the_sum_of_the_steps_where_nothing_queues() -> None:
    topology = sleepers([10, 15, 25, 30])
    links = {**FREE, Transport.zmq: Link(latency_s=0.001)}
    simulation = simulate(topology, SHAPE, ideal(topology, links), frames=30, pace_s=0.05)
    # Source and first stage, last stage and sink: the hop to the sink is the fourth one between ranks.
    assert simulation.latency_s(0.5) == pytest.approx(0.08 + 4 * 0.001)
    assert simulation.latency_s(0.99) == pytest.approx(0.08 + 4 * 0.001)
    assert simulation.period_s == pytest.approx(0.05)
    # At another pace the sink waits for the first stage, which is on its rank.
    later = simulate(topology, SHAPE, ideal(topology, links), frames=30, pace_s=0.04)
    assert later.latency_s(0.5) == pytest.approx(0.09)


# -- resources ---------------------------------------------------------------------------------------------------------


def test_a_link_carries_one_message_at_a_time() -> None:
    topology = sleepers([1, 1])
    slow = {**FREE, Transport.zmq: Link(bytes_per_s=4096 / 0.02)}
    assert simulate(topology, SHAPE, ideal(topology, slow), frames=30).period_s == pytest.approx(0.02)


def test_latency_beyond_the_credits_slows_the_stream() -> None:
    # A credit is out for the way there, the wait to be taken, and the way back: 2 credits in 2 x 30 ms.
    links = {**FREE, Transport.zmq: Link(latency_s=0.03)}
    for inflight, period in ((2, 0.03), (4, 0.015), (16, 0.01)):
        topology = sleepers([10, 10], inflight=inflight)
        found = simulate(topology, SHAPE, ideal(topology, links), frames=60).period_s
        assert found == pytest.approx(period, rel=0.25)


def test_messages_and_units_cost_their_ranks() -> None:
    topology = sleepers([10, 10])
    costs = replace(ideal(topology), message_s=0.002, unit_s=0.001)
    # The second rank takes one message and gives one for each sleep; the first one also emits and shows.
    simulation = simulate(topology, SHAPE, costs, frames=40)
    assert simulation.busy_s(1) == pytest.approx(40 * (0.01 + 0.001 + 2 * 0.002))
    assert simulation.busy_s(0) == pytest.approx(40 * (0.01 + 3 * 0.001 + 2 * 0.002))


def test_edges_never_hold_more_than_their_credits() -> None:
    for inflight in (1, 3):
        topology = sleepers([1, 1, 20], inflight=inflight)
        simulation = simulate(topology, SHAPE, ideal(topology), frames=40)
        assert [traffic.peak_items for traffic in simulation.traffic][:3] == [inflight] * 3
        assert all(traffic.peak_bytes <= inflight * 4096 for traffic in simulation.traffic)
        assert all((traffic.items, traffic.bytes) == (40, 40 * 4096) for traffic in simulation.traffic)


def test_a_joint_forward_costs_its_rows() -> None:
    topology = world(contiguous(3, []), schedule="batched", ms=[10.0])
    for share, period in ((1.0, 0.04), (0.1, 0.013)):
        costs = replace(ideal(topology), row_share=share)
        assert simulate(topology, SHAPE, costs, frames=20).period_s == pytest.approx(period)
        assert busiest_s(topology, costs, 1) == pytest.approx(period)


def test_a_deadlock_is_an_error_and_not_an_end() -> None:
    topology = sleepers([1, 1])
    tiny = widened(topology, bytes=100)
    with pytest.raises(StuckError, match=r"4 of 4 streams wait for ever .* stage source"):
        simulate(tiny, SHAPE, ideal(tiny), frames=3)


def test_nothing_to_simulate_is_refused() -> None:
    topology = sleepers([1, 1])
    with pytest.raises(ValueError, match="at least 1 frame"):
        simulate(topology, SHAPE, ideal(topology), frames=0)


# -- records -----------------------------------------------------------------------------------------------------------


def passes(topology: Topology, **options: Any) -> tuple[dict[tuple[str, int], list[Any]], list[float]]:
    """By stream: its units in order, as (kind, rows, layers); and when the frames were shown."""
    simulation = simulate(topology, SHAPE, costs_from(topology), frames=10, sessions=2, **options)
    found: dict[tuple[str, int], list[Any]] = {}
    for rank in simulation.ranks:
        assert all(a.stop <= b.start for a, b in pairwise(rank)), "a rank did two things at once"
        for span in rank:
            found.setdefault((span.stage, span.session), []).append((span.kind, span.rows, span.layers))
    return found, [time for shown in simulation.shown for time in shown.values()]


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(ContextMode), st.sampled_from(["wavefront", "mirrored"]), st.integers(0, 2**32))
def test_delays_change_when_and_never_what(mode: ContextMode, schedule: str, seed: int) -> None:
    topology = world(contiguous(3, [1, 2]), mode=mode, ms=[10.0, 5.0, 20.0], schedule=schedule)
    plain, times = passes(topology)
    shaken = topology.model_copy(update={"inject": InjectSpec(jitter_ms=30, seed=seed)})
    found, later = passes(shaken)
    assert found == plain
    assert sum(later) > sum(times)
    assert passes(shaken) == (found, later), "a seed gives one simulation"
    assert passes(shaken, seed=seed + 1)[1] != later


def test_skipped_steps_are_not_computed_and_save_time() -> None:
    topology = world(contiguous(4, []), ms=[10.0])
    decisions = {(0, frame): 2 for frame in range(2, 100)}
    simulation = simulate(topology, SHAPE, ideal(topology), frames=20, first_steps=decisions)
    rows = [row for span in simulation.ranks[1] if span.kind is UnitKind.layers for row in span.rows]
    assert min(row.step for row in rows) == 2
    assert simulation.period_s == pytest.approx(0.03)


def test_spans_say_who_worked_on_what() -> None:
    topology = sleepers([10, 20])
    simulation = simulate(topology, SHAPE, ideal(topology), frames=4)
    sleeps = [span for span in simulation.ranks[1] if span.kind is UnitKind.sleep]
    assert [span.start for span in sleeps] == pytest.approx([0.01 + 0.02 * i for i in range(4)])
    assert [span.stop for span in sleeps] == pytest.approx([0.03 + 0.02 * i for i in range(4)])
    assert [(span.stage, span.session, span.rows[0].frame) for span in sleeps] == [("s1", 0, i) for i in range(4)]
    assert simulation.shown[0] == pytest.approx({i: 0.03 + 0.02 * i for i in range(4)})


def test_hundreds_of_ranks_take_seconds() -> None:
    started = time.process_time()
    chain = sleepers([10] * 256)
    simulation = simulate(chain, SHAPE, ideal(chain), frames=120)
    assert simulation.period_s == pytest.approx(0.01)
    assert simulation.latency_s(0) == pytest.approx(2.56)
    net = world(contiguous(64, range(1, 65)), window=4, ms=[10.0] * 65, inflight=16, ranks=4)
    wide = simulate(net, SHAPE, ideal(net), frames=12, sessions=4)
    assert len(wide.ranks) == 261
    assert wide.period_s == pytest.approx(0.0125)
    # About 2 s on an idle core.
    assert time.process_time() - started < 20


# -- steady state ------------------------------------------------------------------------------------------------------


def test_the_period_is_the_median_slope_of_the_second_half() -> None:
    assert steady_period([0.0]) != steady_period([0.0])
    assert steady_period([0.0, 2.0]) == 2.0
    # A slow start, one stall, and a pattern of 1 and 3.
    times = [0.0, 50.0]
    for index in range(40):
        times.append(times[-1] + (1 if index % 2 else 3))
    times[38:] = [value + 7 for value in times[38:]]
    assert steady_period(times) == pytest.approx(2.0, abs=0.15)


def test_percentiles_interpolate() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([1.0, 2.0], 0.25) == 1.25
    assert percentile([], 0.5) != percentile([], 0.5)


def test_the_steady_window_is_where_all_sessions_were_steady() -> None:
    assert steady_window([[0, 1, 2, 3, 4, 5, 6, 7, 8]]) == (4, 7)
    assert steady_window([[0, 1, 2, 3, 4, 5, 6, 7, 8], [2, 3, 4, 5, 6, 7, 8, 9, 10]]) == (6, 7)
    assert steady_window([[0, 1], [10, 11]]) == (0.0, 0.0)
