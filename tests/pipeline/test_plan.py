"""The plan: bytes by mode, bounds, memory, timetable, warnings, costs, and what is printed."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from paceline.launch.plan_view import plan_json, show_plan
from paceline.pipeline.costs import (
    Costs,
    Link,
    busiest_s,
    costs_from,
    in_mode,
    kv_held_bytes,
    link_loads,
    loop_s,
    rank_work_s,
)
from paceline.pipeline.load import load_topology
from paceline.pipeline.plan import Plan, plan
from paceline.pipeline.program import ModelShape
from paceline.pipeline.topology import ContextMode, MemorySpec, Topology, Transport
from paceline.pipeline.view import View
from tests.pipeline.nets import SHAPE, contiguous, sleepers, world

TOPOLOGIES = Path(__file__).parents[2] / "topologies"
KV = SHAPE.layers * SHAPE.kv_layer_bytes
LATENT, FRAME = SHAPE.latent_bytes, SHAPE.frame_bytes


def two_groups(**options: object) -> Topology:
    """Ranks: 0 source, decode and sink; 1 step 0; 2 step 1 and the clean pass."""
    return world([[0], [1, "clean"]], ms=[10.0, 10.0], **options)  # type: ignore[arg-type]


def bytes_on(topology: Topology, mode: ContextMode, sessions: int = 1) -> dict[tuple[int, int], int]:
    loads = link_loads(in_mode(topology, mode), SHAPE, costs_from(topology), sessions)
    return {(load.source, load.target): load.bytes_per_slot for load in loads}


# -- traffic and memory ------------------------------------------------------------------------------------------------


def test_bytes_per_slot_of_two_groups_by_hand() -> None:
    ends = {(0, 1): 0, (2, 0): LATENT, (1, 2): LATENT}
    for mode, back in (
        # clean: level 2 of each frame. cascade: level 1 of the frame before and 2 of the one before that.
        (ContextMode.clean, KV),
        (ContextMode.cascade, 2 * KV),
        # staggered: a slot later the same two levels. matched: nothing.
        (ContextMode.staggered, 2 * KV),
        (ContextMode.matched, 0),
    ):
        expected = ends | ({(2, 1): back} if back else {})
        assert bytes_on(two_groups(), mode) == expected


def test_a_window_of_one_frame_reads_one_level() -> None:
    # Distance 1 only, and the sink's clean KV came long ago: step 0 reads level 1 (cascade) or its own 0 (staggered).
    assert bytes_on(two_groups(window=1), ContextMode.cascade)[2, 1] == KV
    assert (2, 1) not in bytes_on(two_groups(window=1), ContextMode.staggered)


def test_mirrored_sessions_load_both_directions() -> None:
    loads = bytes_on(two_groups(schedule="mirrored"), ContextMode.cascade, sessions=2)
    assert loads[1, 2] == loads[2, 1] == LATENT + 2 * KV


def test_serial_moves_nothing() -> None:
    assert bytes_on(two_groups(schedule="serial"), ContextMode.cascade) == {}


def test_other_modes_keep_the_placement_and_get_the_edges_they_need() -> None:
    topology = world(contiguous(4, [1, 2, 3, 4]), mode="matched")
    clean = in_mode(topology, ContextMode.clean)
    kv = [(edge.source, edge.target) for edge in clean.edges if edge.carries == "kv"]
    assert kv == [("stepclean", f"step{step}") for step in range(4)]
    assert [edge for edge in in_mode(clean, ContextMode.matched).edges if edge.carries == "kv"] == []
    assert clean.stages == topology.stages


def test_kv_held_is_what_the_passes_of_a_slot_touch() -> None:
    # Window 3, one sink. Step 0 in cascade: the sink, levels 1, 2, 2 of three frames, its own level 0.
    held = kv_held_bytes(two_groups(), SHAPE, sessions=1)
    assert held[:2] == [0, 5 * KV]
    # The second stage: frame T - 1 at step 1 and T - 2 at the clean pass read the sink, 3 and 3 frames, all clean
    # (T-5 .. T-2 at level 2), and write (T - 1, 1) and (T - 2, 2).
    assert held[2] == 6 * KV
    assert kv_held_bytes(two_groups(), SHAPE, sessions=3) == [3 * value for value in held]


def test_kv_that_may_be_recalled_is_kept() -> None:
    topology = two_groups()
    topology = topology.model_copy(update={"context": topology.context.model_copy(update={"recall": 1})})
    # Ten frames of the session and two of the prompt. The last one can recall frames 1 to 7 beside its sink and its
    # window of three, and each stage holds them; but the first one more: those that are older by its slot.
    plain, held = (kv_held_bytes(t, SHAPE, sessions=1, frames=10) for t in (two_groups(), topology))
    assert [(b - a) // KV for a, b in zip(plain, held, strict=True)] == [0, 7, 7]
    few = replace(SHAPE, view=View(2, 1, 1))
    assert (kv_held_bytes(topology, few, sessions=1, frames=100)[1] - plain[1]) // KV == 1 + 4, "four poses and no more"


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_bounds_are_the_formulas() -> None:
    ramp = (10.0, 15.0, 25.0, 30.0)
    for schedule, sessions, bound in (("wavefront", 1, 0.03), ("mirrored", 2, 0.04), ("serial", 1, 0.08)):
        topology = sleepers(ramp, schedule=schedule)
        assert busiest_s(topology, costs_from(topology), sessions) == pytest.approx(bound)
    topology = two_groups()
    assert rank_work_s(topology, costs_from(topology), 1) == pytest.approx([0, 0.01, 0.02])
    assert rank_work_s(in_mode(topology, ContextMode.matched), costs_from(topology), 1) == pytest.approx(
        [0, 0.01, 0.01]
    )


@pytest.mark.parametrize(
    ("mode", "loop"),
    # Latent 1 ms there; KV back: a layer (10 ms / 4) or a frame, 10 kB or 40 kB at 1 MB/s, and 1 ms.
    [
        ("clean", 0.03),
        ("cascade", 0.01 + 0.0025 + 0.002 + 0.011),
        ("staggered", (0.02 + 0.002 + 0.041) / 2),
        ("matched", 0),
    ],
)
def test_the_loop_through_latents_and_kv(mode: str, loop: float) -> None:
    topology = two_groups(mode=mode)
    costs = Costs(costs_from(topology).pass_s, {Transport.dist: Link(0.001, 1e6)})
    assert loop_s(topology, SHAPE, costs) == pytest.approx(loop)


@pytest.mark.parametrize(
    "name", sorted(path.name for path in TOPOLOGIES.glob("*.yaml") if not path.name.startswith("speculate"))
)
def test_every_topology_of_the_project_is_live_and_runs_at_its_bound(name: str) -> None:
    topology = load_topology(TOPOLOGIES / name)
    ms = {stage: 5.0 for stage, spec in topology.stages.items() if spec.kind == "denoise"}
    made = plan(topology, SHAPE, costs_from(topology, {"stage_ms": ms}), slots=4)
    assert made.deadlock is None
    assert made.bound_s * 0.999 <= made.period_s <= made.bound_s * 1.1
    assert not [warning for warning in made.warnings if "credits" in warning]
    assert not [warning for warning in made.warnings if "must carry" in warning]


# -- the plan ----------------------------------------------------------------------------------------------------------


def test_a_plan_says_who_computes_what() -> None:
    topology = world([[0], [1], [2], [3, "clean"]], ms=[10.0] * 4, schedule="mirrored", inflight=16)
    made = plan(topology, SHAPE, costs_from(topology), weights_bytes=7)
    assert made.sessions == 2
    assert [rank.streams for rank in made.ranks[1:3]] == [(("step0", 0), ("step3", 1)), (("step1", 0), ("step2", 1))]
    assert [rank.weights_bytes for rank in made.ranks] == [0, 7, 7, 7, 7]
    assert made.ranks[1].work_s == pytest.approx(0.03)
    assert made.ranks[1].bubble == pytest.approx(0, abs=0.05)
    assert made.ranks[2].bubble == pytest.approx(1 / 3, abs=0.1)
    assert made.ranks[0].bubble == pytest.approx(1)
    assert made.period_s == pytest.approx(0.03, rel=0.1)


def test_context_memories_lie_where_the_first_step_of_their_session_is() -> None:
    topology = world([[0], [1], [2], [3, "clean"]], ms=[10.0] * 4, schedule="mirrored", inflight=16)
    made = plan(topology, SHAPE, costs_from(topology), state_bytes=5)
    assert [rank.memory_bytes for rank in made.ranks] == [0] * 5, "the topology has no memory"
    with_one = topology.with_context(topology.context.model_copy(update={"memory": MemorySpec(kind="delta")}))
    four = plan(with_one, SHAPE, costs_from(with_one), sessions=4, state_bytes=5)
    # Odd sessions enter from the other end.
    assert [rank.memory_bytes for rank in four.ranks] == [0, 10, 0, 0, 10]
    assert [rank["memory_bytes"] for rank in plan_json(four)["ranks"]] == [0, 10, 0, 0, 10]
    assert "memory" in shown(four)


def test_every_rank_of_a_group_gets_a_session() -> None:
    made = plan(world([[0], [1, "clean"]], ms=[10.0, 10.0], ranks=3), SHAPE, costs_from(two_groups()))
    assert made.sessions == 3
    assert all(rank.streams for rank in made.ranks)


def test_the_timetable_is_the_wavefront() -> None:
    made = plan(two_groups(prompt=1), SHAPE, costs_from(two_groups()), slots=4)
    cells = [[[(c.session, c.row.frame, c.row.step) for c in cell] for cell in slot[1:]] for slot in made.timetable]
    assert cells == [
        [[(0, 1, 0)], []],
        [[(0, 2, 0)], [(0, 1, 1)]],
        [[(0, 3, 0)], [(0, 1, 2), (0, 2, 1)]],
        [[(0, 4, 0)], [(0, 2, 2), (0, 3, 1)]],
    ]


def test_a_deadlock_leaves_the_rest_of_the_plan() -> None:
    topology = two_groups()
    tiny = topology.model_copy(update={"edges": tuple(e.model_copy(update={"bytes": 999}) for e in topology.edges)})
    made = plan(tiny, SHAPE, costs_from(tiny))
    assert made.deadlock is not None
    assert math.isnan(made.period_s)
    assert math.isnan(made.ranks[0].bubble)
    text = shown(made)
    assert "deadlock: stage" in text
    assert "--set edges." in text
    assert plan_json(made)["period_ms"] is None


# -- warnings ----------------------------------------------------------------------------------------------------------


def test_a_link_that_is_too_slow_is_named_with_what_it_must_carry() -> None:
    # 300 MB of KV in a slot of 40 ms: the example of DESIGN section 4, with two levels on their way.
    topology = two_groups(extra={"deadline_ms": 40})
    shape = ModelShape(30, 200_000, 10_000_000, 1_000_000)
    made = plan(topology, shape, replace(costs_from(topology), links={Transport.dist: Link(0, 1.2e9)}))
    assert made.warnings[0] == ("group g1 -> g0 must carry 572 MiB per 40 ms slot = 15 GB/s, dist gives 1.2")
    fast = plan(topology, shape, replace(costs_from(topology), links={Transport.dist: Link(0, 100e9)}))
    assert not [warning for warning in fast.warnings if "must carry" in warning]


def test_a_deadline_that_can_t_be_met_is_named() -> None:
    topology = two_groups(extra={"deadline_ms": 15}, inflight=16)
    (warning,) = plan(topology, SHAPE, costs_from(topology)).warnings
    assert warning.startswith("a frame takes 20")
    assert warning.endswith("ms but is due every 15 ms; on_late is wait")
    met = two_groups(extra={"deadline_ms": 40}, inflight=16)
    assert plan(met, SHAPE, costs_from(met)).warnings == ()


def test_credits_that_hold_the_pipeline_back_are_named_with_enough_of_them() -> None:
    topology = world(contiguous(4, [1, 2, 3, 4]), ms=[10.0] * 5)
    made = plan(topology, SHAPE, costs_from(topology))
    (warning,) = made.warnings
    assert warning.startswith("credits hold the period at")
    edges = list(topology.edges)
    for change in warning.split("--set edges.")[1:]:
        index, _, value = change.strip().partition(".inflight=")
        edges[int(index)] = edges[int(index)].model_copy(update={"inflight": int(value)})
    better = topology.model_copy(update={"edges": tuple(edges)})
    again = plan(better, SHAPE, costs_from(better))
    assert again.warnings == ()
    assert again.period_s < made.period_s * 0.9


def test_unknown_costs_are_named_and_no_number_is_made_up() -> None:
    topology = world([[0], [1, "clean"]], via="zmq", ms=[0.0, 10.0])
    (warning,) = plan(topology, SHAPE, Costs(costs_from(topology).pass_s, {})).warnings
    assert warning.startswith("step0: no cost of a pass is known")
    nothing = sleepers([0.0, 0.0])
    made = plan(nothing, SHAPE, Costs({}, {}))
    assert made.period_s == 0
    assert math.isnan(made.frames_per_second)
    assert plan_json(made)["frames_per_second"] is None
    assert "period" in shown(made)


# -- costs -------------------------------------------------------------------------------------------------------------


def test_costs_are_those_of_the_file_or_of_a_run() -> None:
    topology = two_groups()
    assert costs_from(topology).pass_s["step0"] == 0.01
    measured = costs_from(topology, {"stage_ms": {"step0": 4}, "fps": 3})
    assert measured.pass_s["step0"] == 0.004
    assert measured.pass_s["step1"] == 0.01


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        ({}, "have no 'stage_ms'; give the summary.json of a run"),
        ({"stage_ms": {"step9": 1.0}}, "measured stage 'step9' is not in topology net; it has source, step0"),
        ({"stage_ms": {"step0": "fast"}}, "stage_ms of step0 is 'fast'; it must be milliseconds"),
        ({"stage_ms": {"step0": -1}}, "must be milliseconds, 0 or more"),
        ({"stage_ms": {"step0": math.nan}}, "must be milliseconds"),
    ],
)
def test_measured_costs_are_checked(measured: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        costs_from(two_groups(), measured)


# -- what is shown -----------------------------------------------------------------------------------------------------


def shown(made: Plan) -> str:
    console = Console(file=io.StringIO(), width=140, no_color=True)
    show_plan(made, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_picture_has_groups_edges_figures_and_a_verdict() -> None:
    topology = two_groups(inflight=16)
    text = shown(plan(topology, SHAPE, costs_from(topology)))
    for part in (
        "net: wavefront, context cascade, 1 session(s)",
        "step1 (denoise 1,clean)",
        "step0 ── dist, 16 x, 64 MiB ─▶ step1",
        "step0 ◀┄ kv dist, 16 x, 64 MiB ┄ step1",
        "cascade *",
        "g1 (2) -> g0 (1)",
        "78.1 KiB",
        "bound by context",
        "live: no order and no delay can deadlock it",
    ):
        assert part in text, part


def test_json_is_plain_and_complete() -> None:
    topology = two_groups(inflight=16)
    made = plan(topology, SHAPE, costs_from(topology))
    data = json.loads(json.dumps(plan_json(made), allow_nan=False))
    assert data["live"] is True
    assert data["bound_ms"]["work"] == 20
    assert set(data["loads"]) == {"clean", "cascade", "staggered", "matched"}
    assert data["ranks"][1]["streams"] == [{"stage": "step0", "session": 0}]
    assert len(data["timetable"]) == 12


def test_sleep_workloads_have_no_context() -> None:
    topology = sleepers([10, 20])
    made = plan(topology, SHAPE, costs_from(topology))
    assert plan_json(made)["context"] is None
    assert "cascade" not in shown(made)
    assert "clean" not in shown(made)


def test_large_plans_are_cut_for_people() -> None:
    topology = sleepers([10] * 40)
    text = shown(plan(topology, SHAPE, costs_from(topology), frames=4))
    assert "... and 9 more" in text
    assert "8 more" in text
