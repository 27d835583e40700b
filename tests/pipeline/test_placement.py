"""Which rank computes what, for every schedule."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.pipeline.load import load_topology
from paceline.pipeline.placement import Placement
from paceline.pipeline.topology import Topology, topology_model
from paceline.pipeline.validate import validate

TOPOLOGIES = Path(__file__).parents[2] / "topologies"


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """Valid worlds and sleep chains of 1 to 6 groups, with up to 3 ranks each, in every schedule that fits."""
    groups = draw(st.integers(1, 6))
    sleep = draw(st.booleans())
    schedule = draw(st.sampled_from(["serial", "wavefront", "mirrored"] if groups > 1 else ["serial", "wavefront"]))
    order = draw(st.permutations(range(groups)))
    ranks = draw(st.lists(st.integers(1, 3), min_size=groups, max_size=groups))
    home = f"g{draw(st.integers(0, groups - 1))}"
    chain = [f"step{place}" for place in range(groups)]
    stages: dict[str, dict[str, object]] = {"source": {"kind": "source", "group": home}}
    for place, name in enumerate(chain):
        steps = {} if sleep else {"steps": [place] + (["clean"] if place == groups - 1 else [])}
        stages[name] = {"kind": "sleep" if sleep else "denoise", "group": f"g{order[place]}", **steps}
    tail = ["sink"] if sleep else ["decode", "sink"]
    stages.update({name: {"kind": name, "group": home} for name in tail})
    path = ["source", *chain, *tail]
    pairs = list(pairwise(path))
    edges: list[dict[str, object]] = [{"from": a, "to": b, "via": "dist"} for a, b in pairs]
    if not sleep:
        edges += [
            {"from": late, "to": early, "via": "dist", "carries": "kv"}
            for place, late in enumerate(chain)
            for early in chain[:place]
        ]
    topology = topology_model("sleep" if sleep else "world").model_validate(
        {
            "name": "drawn",
            "workload": "sleep" if sleep else "world",
            "schedule": schedule,
            **({} if sleep else {"model": {"steps": groups}, "context": {"mode": "cascade"}}),
            "groups": {f"g{i}": {"ranks": count} for i, count in enumerate(ranks)},
            "stages": stages,
            "edges": edges,
        }
    )
    assert validate(topology) == []
    return topology


@given(topologies(), st.integers(0, 7))
def test_every_stage_of_every_session_has_one_rank(topology: Topology, sessions: int) -> None:
    placement = Placement(topology)
    streams = [stream for rank in range(placement.world_size) for stream in placement.streams(rank, sessions)]
    assert sorted(streams) == sorted((stage, session) for stage in topology.stages for session in range(sessions))


@given(topologies())
def test_ranks_are_numbered_through_the_groups(topology: Topology) -> None:
    placement = Placement(topology)
    assert [rank for group in topology.groups for rank in placement.ranks(group)] == list(range(topology.world_size))
    for group in topology.groups:
        assert all(placement.group_of_rank(rank) == group for rank in placement.ranks(group))
    with pytest.raises(ValueError, match=rf"rank {topology.world_size} is not in 0..{topology.world_size - 1}"):
        placement.group_of_rank(topology.world_size)


@given(topologies(), st.integers(0, 9))
def test_a_session_enters_and_leaves_on_one_rank(topology: Topology, session: int) -> None:
    placement = Placement(topology)
    assert placement.rank_of("source", session) == placement.rank_of("sink", session)


@given(topologies(), st.integers(0, 5))
def test_routes_are_the_edges_between_placed_stages(topology: Topology, sessions: int) -> None:
    placement = Placement(topology)
    routes = placement.routes(sessions)
    assert len(routes) <= len(topology.edges) * sessions
    for index, source, target in routes:
        edge = topology.edges[index]
        assert any(
            (placement.rank_of(edge.source, s), placement.rank_of(edge.target, s)) == (source, target)
            for s in range(sessions)
        )


@given(topologies(), st.integers(0, 4))
def test_odd_sessions_run_from_the_far_end_only_when_mirrored(topology: Topology, pair: int) -> None:
    placement = Placement(topology)
    chain = [stage for stage in topology.stages if stage.startswith("step")]
    even = [placement.group_of(stage, 2 * pair) for stage in chain]
    odd = [placement.group_of(stage, 2 * pair + 1) for stage in chain]
    assert even == [topology.stages[stage].group for stage in chain]
    assert odd == (even[::-1] if topology.schedule == "mirrored" else even)
    for stage in ("source", "sink"):
        assert placement.group_of(stage, 2 * pair + 1) == topology.stages[stage].group


@given(topologies(), st.integers(1, 4))
def test_sessions_spread_evenly_over_the_ranks_of_a_group(topology: Topology, rounds: int) -> None:
    placement = Placement(topology)
    pairs = 2 if topology.schedule == "mirrored" else 1
    ranks = placement.ranks(topology.stages["source"].group)
    hosts = [placement.rank_of("source", session) for session in range(len(ranks) * pairs * rounds)]
    assert {hosts.count(rank) for rank in ranks} == {pairs * rounds}


def test_world_2_ranks() -> None:
    placement = Placement(load_topology(TOPOLOGIES / "world-2.yaml"))
    assert placement.streams(0, 1) == [("source", 0), ("step0", 0), ("sink", 0)]
    assert placement.streams(1, 1) == [("step1", 0), ("decode", 0)]
    assert placement.routes(3) == {(0, 0, 0), (1, 0, 1), (2, 1, 1), (3, 1, 0), (4, 1, 0)}


def test_world_4_mirrored_ranks() -> None:
    placement = Placement(load_topology(TOPOLOGIES / "world-4-mirrored.yaml"))
    steps = ["step0", "step1", "step2", "step3"]
    assert [placement.rank_of(step, 0) for step in steps] == [0, 1, 2, 3]
    assert [placement.rank_of(step, 1) for step in steps] == [3, 2, 1, 0]
    assert [placement.rank_of(stage, 1) for stage in ("source", "decode", "sink")] == [0, 0, 0]


def test_sleep_stages_are_mirrored_along_their_edges() -> None:
    placement = Placement(load_topology(TOPOLOGIES / "sleep-4.yaml", ["schedule=mirrored"]))
    assert [placement.rank_of(f"step{i}", 1) for i in range(4)] == [3, 2, 1, 0]
