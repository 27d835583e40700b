"""The evaluator gives the true world full marks and a wrong one none; the shipped weights keep a floor of quality."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import zoo.world
from paceline.stages.dit.network import load_dit
from zoo.world.environment import render
from zoo.world.evaluate import HELD_OUT, main, next_frame, score
from zoo.world.rollout import ContextMode, Control, Past, record, rollout
from zoo.world.sheet import contact_sheet

WEIGHTS = Path(zoo.world.__file__).parent / "weights.safetensors"
ROOT = Path(zoo.world.__file__).parents[2]
MEMORY = Path(zoo.world.__file__).parents[1] / "world-memory" / "weights.safetensors"


def test_the_truth_gets_full_marks() -> None:
    truth = record(list(range(8)), 110)
    scores = score(truth.frames, truth)
    assert scores.persistence == scores.last == scores.uncovered == scores.painted == scores.agent == scores.pan == 1.0
    assert all(share == 1.0 and count > 10 for share, count in scores.revisit.values())
    assert scores.crispness == 0.0
    assert 4.9 < scores.entropy <= 5.0


def test_a_world_that_does_not_move_is_found_out() -> None:
    truth = record(list(range(8)), 16)
    stuck = truth.frames.copy()
    stuck[4:] = stuck[3]
    scores = score(stuck, truth)
    assert scores.persistence < 0.5
    assert scores.pan < 0.5


def test_a_world_that_forgets_is_found_out() -> None:
    truth = record(list(range(8)), 40)
    other = record(list(range(100, 108)), 40)
    swapped = truth.frames.copy()
    for frame in range(20, 40):  # from here on another world's ground under the same walk
        swapped[frame] = render(other.ground[frame], truth.balls[frame], truth.agent[frame], truth.heading[frame])
    scores = score(swapped, truth)
    assert scores.last > 0.99
    assert scores.revisit["17-64"][0] < 0.9


def test_contact_sheet_holds_every_frame() -> None:
    truth = record([0], 5)
    sheet = np.asarray(contact_sheet([truth.frames[:, 0], truth.frames[:, 0]], columns=5, scale=1))
    assert np.array_equal(sheet[:32, :32], truth.frames[0, 0])
    assert np.array_equal(sheet[34:66, 4 * 34 : 4 * 34 + 32], truth.frames[4, 0])


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="no trained weights in this checkout")
def test_shipped_weights_keep_the_world() -> None:
    model = load_dit(WEIGHTS)
    truth = record(list(range(HELD_OUT, HELD_OUT + 4)), 14)
    ahead = next_frame(model, truth, steps=1)
    assert ahead.tile_accuracy >= 0.98  # 0.995 over 16 worlds
    assert ahead.psnr >= 25  # 27.8
    floors: dict[ContextMode, float] = {"clean": 0.93, "cascade": 0.90}
    for mode, floor in floors.items():  # 0.963 and 0.945
        free = score(rollout(model, truth, mode, 2), truth)
        assert free.persistence >= floor
        assert free.agent >= 0.95
        assert free.pan >= 0.95
        assert free.crispness <= 18  # 12 and 13


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="no trained weights in this checkout")
def test_recall_remembers_beyond_the_window() -> None:
    """Tiles that were out of view for more than the window come back as they were, where frames are recalled."""
    model = load_dit(WEIGHTS)
    truth = record(list(range(HELD_OUT, HELD_OUT + 6)), 48)
    far = {}
    for recall in (0, 2):
        revisit = score(rollout(model, truth, "cascade", 2, past=Past(recall=recall)), truth).revisit
        counts = [revisit[lag] for lag in ("9-16", "17-64")]
        far[recall] = sum(share * count for share, count in counts) / sum(count for _, count in counts)
    assert far[2] >= far[0] + 0.15, far  # over 16 worlds and 72 frames 0.39 and 0.82


@pytest.mark.skipif(not MEMORY.is_file(), reason="no trained weights in this checkout")
def test_a_memory_remembers_beyond_the_window() -> None:
    """Tiles that were out of view for more than the window come back as they were; with an empty memory they don't."""
    model = load_dit(MEMORY)
    truth = record(list(range(HELD_OUT, HELD_OUT + 6)), 48)
    controls: list[Control] = ["none", "zero"]
    far = {}
    for control in controls:
        revisit = score(rollout(model, truth, "cascade", 2, past=Past(control=control)), truth).revisit
        counts = [revisit[lag] for lag in ("9-16", "17-64")]
        far[control] = sum(share * count for share, count in counts) / sum(count for _, count in counts)
    assert far["none"] >= far["zero"] + 0.3, far


@pytest.mark.skipif(not MEMORY.is_file(), reason="no trained weights in this checkout")
def test_a_topology_is_scored_as_it_is_set(capsys: pytest.CaptureFixture[str]) -> None:
    """The JSON of a topology is the score of a rollout in its mode, with its steps, window and memory."""
    path = ROOT / "topologies" / "world-2-memory.yaml"
    sets = ["--set", "context.window=6", "--set", "context.mode=clean"]
    main(["--topology", str(path), *sets, "--worlds", "2", "--frames", "20", "--seed", "9000", "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    truth = record([9000, 9001], 20)
    wanted = score(rollout(load_dit(MEMORY), truth, "clean", 2, past=Past(window=6)), truth)
    assert (found["kept"], found["state_bytes"], found["control"]) == (wanted.persistence, 4 * 4 * 512 * 13, "none")
    assert found["revisit"] == {lag: share if n else None for lag, (share, n) in wanted.revisit.items()}
    assert found["tiles"]["1"] == wanted.revisit["1"][1] > 0


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        (["--topology", "topologies/speculate-2.yaml"], "no topology of a world"),
        (["--topology", "topologies/world-1.yaml", "--control", "zero"], "has no memory that could be replaced"),
        (["--topology", "topologies/none.yaml"], "none.yaml"),
    ],
)
def test_what_can_not_be_scored_is_refused(given: list[str], cause: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(ROOT / part) if part.startswith("topologies/") else part for part in given])
    assert ended.value.code == 2
    assert cause in capsys.readouterr().err
