"""A run that took approximations is taken again from its journal, frame for frame, however it is launched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launch.ways import Summary, local, serial, torchrun, two_agents

OPTIONS = ("--frames", "12", "--sessions", "2", "--seed", "5", "--quiet", "--kv-hash")
LATE = ("--set", "deadline_ms=0.5", "--set", "on_late=fewer_steps")


@pytest.mark.slow
@pytest.mark.parametrize("ways", [[serial], pytest.param([torchrun, two_agents], marks=pytest.mark.exhaustive)])
def test_a_replay_gives_the_same_frames(tmp_path: Path, weights: str, ways: list[Callable[..., Summary]]) -> None:
    options = (*OPTIONS, "--set", weights)
    first = local("topologies/world-2.yaml", 2, *options, *LATE, "--out", str(tmp_path))
    assert first["lateness_ms"]["p50"] > 0
    assert {decision["what"] for decision in first["decisions"]} == {"fewer_steps"}
    replay = ("--replay", str(tmp_path / "journal.jsonl"))
    # Without any deadline all time is there is; the journal alone makes the frames coarser again.
    for way in ways:
        again = way("topologies/world-2.yaml", 2, *options, *replay)
        assert [s["outputs_sha256"] for s in again["sessions"]] == [s["outputs_sha256"] for s in first["sessions"]]
        assert again["kv_sha256"] == first["kv_sha256"]
    exact = serial("topologies/world-2.yaml", 2, *options)
    assert exact["sessions"][0]["outputs_sha256"] != first["sessions"][0]["outputs_sha256"]
