"""Local processes, torchrun, multi-node torchrun and the serial reference give the same frames and the same KV."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from tests.launch.ways import Summary, local, serial, torchrun, two_agents

OPTIONS = ("--frames", "6", "--seed", "11", "--sessions", "2", "--kv-hash", "--quiet")


@pytest.fixture(scope="module")
def references(weights: str) -> dict[int, Summary]:
    """The serial runs, by number of steps. Placement is no part of it: topologies of equal steps share a reference."""
    names = {2: "world-2", 4: "world-4-mirrored"}
    return {steps: serial(f"topologies/{name}.yaml", 1, *OPTIONS, "--set", weights) for steps, name in names.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ranks", "steps", "way", "extra"),
    [
        ("world-2", 2, 2, local, ()),
        ("world-2", 2, 2, torchrun, ()),
        pytest.param("world-2", 2, 2, two_agents, (), marks=pytest.mark.exhaustive),
        ("world-2-zmq", 2, 2, local, ()),
        ("world-2-mirrored", 2, 2, local, ("--set", "inject.jitter_ms=3")),
        ("world-1", 1, 2, local, ()),
        ("world-4-mirrored", 4, 4, two_agents, ()),
    ],
)
def test_all_ways_agree_with_the_serial_run(
    name: str,
    ranks: int,
    steps: int,
    way: Callable[..., Summary],
    extra: Sequence[str],
    weights: str,
    references: dict[int, Summary],
) -> None:
    found = way(f"topologies/{name}.yaml", ranks, *OPTIONS, "--set", weights, *extra)
    reference = references[steps]
    assert len(found["ranks"]) == ranks
    assert found["seed"] == reference["seed"] == 11
    assert [session["frames"] for session in found["sessions"]] == [6, 6]
    assert [s["outputs_sha256"] for s in found["sessions"]] == [s["outputs_sha256"] for s in reference["sessions"]]
    assert len(reference["kv_sha256"]) > 0
    assert found["kv_sha256"] == reference["kv_sha256"]


@pytest.mark.slow
def test_another_seed_and_another_session_give_other_frames(weights: str, references: dict[int, Summary]) -> None:
    options = ("--frames", "6", "--seed", "12", "--sessions", "2", "--quiet", "--set", weights)
    other = serial("topologies/world-2.yaml", 1, *options)
    assert len({s["outputs_sha256"] for s in (*other["sessions"], *references[2]["sessions"])}) == 4
