"""A world model's session that is far longer than hbm holds: the frames of the run with everything in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paceline.launch.checks import check_world_tiers
from paceline.launch.errors import ArgumentError
from paceline.launch.frames import FrameWorkload
from paceline.launch.local import run_local
from paceline.launch.summary import summarize
from paceline.pipeline.topology import Transport, WorldTopology
from paceline.runtime.serial import run_serial
from paceline.runtime.spec import RunSpec
from tests.launch.small_world import FRAME, save_small
from tests.launch.test_modes import two_groups
from tests.launch.ways import local, serial

HBM_FRAMES = 8


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of two layers."""
    return save_small(tmp_path_factory.mktemp("weights"))


def tiered(weights: Path, folder: Path, via: str, **change: object) -> WorldTopology:
    """Two groups that hold eight frames in hbm, sixteen in dram and the rest on disk."""
    budget = {
        "hbm": HBM_FRAMES * FRAME, "dram": 16 * FRAME, "nvme": {"path": str(folder), "size": 160 * FRAME},
        "policy": "slab",
    }  # fmt: skip
    made = two_groups(weights, "cascade", inject={}, tiers={"early": budget, "late": budget}, **change)
    context = made.context.model_copy(update={"recall": 2})
    edges = tuple(edge.model_copy(update={"via": Transport(via)}) for edge in made.edges)
    return WorldTopology.model_validate(made.model_dump(mode="json", by_alias=True) | {
        "context": context.model_dump(), "edges": [edge.model_dump(by_alias=True) for edge in edges],
    })  # fmt: skip


def checked(found: dict[str, Any], hbm: int = HBM_FRAMES * FRAME) -> dict[str, dict[str, Any]]:
    """The tiers of a summary, after a look at their arithmetic."""
    tiers: dict[str, dict[str, Any]] = found["tiers"]
    assert sorted(tiers) == ["early", "late"]
    for group in tiers.values():
        assert list(group["hits"]) == ["hbm", "dram", "nvme"]
        assert sum(group["hits"].values()) == group["lookups"] > 0
        assert group["omitted_mass"] == {"max": 0.0, "mean": 0.0}
        assert group["moved_bytes"] > 0
        assert not any(group["errors"].values())
        assert group["bytes"]["hbm"] <= hbm
    return tiers


@pytest.mark.slow
@pytest.mark.parametrize(("via", "schedule", "sessions"), [("dist", "wavefront", 1), ("zmq", "mirrored", 2)])
def test_a_session_ten_times_longer_than_hbm(
    via: str, schedule: str, sessions: int, small: Path, tmp_path: Path
) -> None:
    topology = tiered(small, tmp_path / "kv", via, schedule=schedule)
    frames = 10 * HBM_FRAMES // sessions
    spec = RunSpec(topology, frames=frames, sessions=sessions, seed=3, kv_hash=True)
    reference = run_serial(spec, tmp_path)
    assert summarize(spec, reference)["tiers"] == {}
    found = run_local(FrameWorkload(spec))
    assert [s["outputs_sha256"] for s in found["sessions"]] == [s.outputs_sha256 for s in reference.sessions]
    assert found["kv_sha256"] == reference.ranks[0].kv_sha256
    for group in checked(found).values():
        # What lies below hbm is older than the window, and was read there, not computed again.
        assert group["hits"]["dram"] > 0
        assert group["hits"]["nvme"] > 0 or sessions > 1
    assert not list((tmp_path / "kv").glob("*")), "a file of blocks was left behind"


@pytest.mark.slow
def test_the_topology_of_the_project_and_its_budgets_on_the_command_line(weights: str, tmp_path: Path) -> None:
    options = ("--frames", "20", "--seed", "5", "--quiet", "--set", weights)
    budget = ("tiers.{}.hbm=1MiB", "tiers.{}.dram=2MiB", f"tiers.{{}}.nvme.path={tmp_path}", "tiers.{}.policy=lru")
    sets = [word for group in ("early", "late") for key in budget for word in ("--set", key.format(group))]
    found = local("topologies/world-2-tiers.yaml", 2, *options, *sets)
    everything = serial("topologies/world-2-tiers.yaml", 1, *options)
    checked(found, hbm=2**20)
    assert found["sessions"][0]["outputs_sha256"] == everything["sessions"][0]["outputs_sha256"]


def test_budgets_that_can_not_do_are_refused_before_anything_starts(small: Path, tmp_path: Path) -> None:
    topology = tiered(small, tmp_path, "zmq")
    check_world_tiers(topology, 1000, 2)

    def with_late(**budget: object) -> WorldTopology:
        spec = topology.tiers["late"].model_copy(update=budget)
        return topology.model_copy(update={"tiers": {**topology.tiers, "late": spec}})

    least = 2 * 2 * 8192  # two blocks of 8 KiB for each of two layers
    check_world_tiers(with_late(hbm=least), 1000, 2)
    with pytest.raises(ArgumentError, match=rf"tiers\.late\.hbm: .* write {least} or more"):
        check_world_tiers(with_late(hbm=least - 1), 1000, 2)
    few = {"hbm": 6 * FRAME, "dram": 0, "nvme": None}
    check_world_tiers(with_late(**few), 1000, 1)  # a sink, four frames of the window, and the frame itself
    with pytest.raises(ArgumentError, match=r"tiers\.late: .* 2 sessions that read 6 frames each"):
        check_world_tiers(with_late(**few), 1000, 2)
