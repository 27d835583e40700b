"""A return is where tiles come into view again that were out of it; what is said of them is read from the frames."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from zoo.world.rollout import Record
from zoo.world.walk import find_return, main, tiles_of, walk_of

AWAY = 17


@pytest.fixture(scope="module")
def walk() -> Record:
    return walk_of(63, 64)


def shown(pose: np.ndarray) -> set[tuple[int, int]]:
    """Tiles that a view at a pose shows whole, by counting its half tiles."""
    y, x = pose.tolist()
    rows = [((y + i) // 2 % 24) for i in range(15) if (y + i) % 2 == 0]
    columns = [((x + i) // 2 % 24) for i in range(15) if (x + i) % 2 == 0]
    return {(row, column) for row in rows for column in columns}


def test_the_return_is_the_best_there_is(walk: Record) -> None:
    poses = walk.pose[:, 0]
    views = [shown(pose) for pose in poses]
    best = max(
        len((views[after] & views[before]) - set().union(*views[after - AWAY : after]))
        for after in range(12 + AWAY + 1, 64)
        for before in range(12, after - AWAY)
    )
    found = find_return(poses, AWAY)
    assert found is not None
    assert found.tiles == best == 16
    lost = (views[found.after] & views[found.before]) - set().union(*views[found.after - AWAY : found.after])
    assert len(lost) == best


def test_the_truth_comes_back_as_it_was_and_another_world_does_not(walk: Record) -> None:
    found = find_return(walk.pose[:, 0])
    assert found is not None
    tiles = tiles_of(walk.frames[:, 0], walk.pose[:, 0], found)
    # Paint may change a tile meanwhile; on this walk it does not.
    assert len(tiles) >= 12
    assert all(tile.same for tile in tiles)
    mixed = walk.frames[:, 0].copy()
    mixed[found.after] = np.roll(mixed[found.after], 4, axis=1)
    changed = tiles_of(mixed, walk.pose[:, 0], found)
    assert sum(tile.same for tile in changed) < len(changed) / 2


def test_a_walk_that_never_comes_back_has_no_return() -> None:
    assert find_return(np.stack([np.arange(40) % 48, np.zeros(40, np.int64)], axis=1)) is None


def leave(folder: Path, seed: int, frames: np.ndarray) -> Path:
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps({"seed": seed}))
    np.save(folder / "session-0.npy", frames)
    return folder


def test_runs_are_read_and_drawn(walk: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = walk.frames[:, 0]
    kept, other = leave(tmp_path / "a", 63, frames), leave(tmp_path / "b", 63, frames[::-1])
    main(["--memory", str(kept), "--without", str(other), "--picture", str(tmp_path / "walk.png")])
    said = capsys.readouterr().out.splitlines()
    number = said[0].split()[2]
    assert said[0].startswith(f"with memory: {number} of {number} tiles")
    assert (tmp_path / "walk.png").stat().st_size > 10_000


@pytest.mark.parametrize(("seed", "count", "cause"), [(62, 64, "differ"), (63, 60, "differ"), (None, 64, "--out")])
def test_runs_of_different_walks_are_refused(
    seed: int | None, count: int, cause: str, walk: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = walk.frames[:, 0]
    one = leave(tmp_path / "a", 63, frames)
    two = tmp_path / "b" if seed is None else leave(tmp_path / "b", seed, frames[:count])
    with pytest.raises(SystemExit):
        main(["--memory", str(one), "--without", str(two), "--picture", str(tmp_path / "walk.png")])
    assert cause in capsys.readouterr().err
