"""A file of frames is whole at any time, and NumPy reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paceline.runtime.spool import FrameFile
from tests.launch.synthetic import movie


def test_numpy_reads_what_has_come_after_each_frame(tmp_path: Path) -> None:
    path = tmp_path / "session-0.npy.part"
    path.write_bytes(b"of an earlier run, and longer than the header of a new one" * 10)
    frames = movie(5, 0)
    file = FrameFile(path)
    for count, frame in enumerate(frames, 1):
        file.append(frame)
        np.testing.assert_array_equal(np.load(path), frames[:count])
        np.testing.assert_array_equal(np.load(path, mmap_mode="r"), frames[:count])
    file.close()
    # Byte for byte what NumPy writes.
    np.save(tmp_path / "by-numpy.npy", frames)
    assert path.read_bytes() == (tmp_path / "by-numpy.npy").read_bytes()


def test_a_frame_that_is_half_written_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "frames"
    frames = movie(3, 0)
    file = FrameFile(path)
    file.append(frames[0])
    file.append(frames[1])
    file.close()
    with path.open("ab") as half:
        half.write(frames[2].tobytes()[:100])
    np.testing.assert_array_equal(np.load(path), frames[:2])


def test_frames_of_another_shape_are_refused(tmp_path: Path) -> None:
    file = FrameFile(tmp_path / "frames")
    file.append(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"a frame of shape \[8, 4, 3\] behind ones of \[4, 4, 3\]"):
        file.append(np.zeros((8, 4, 3), np.uint8))
    file.close()
    assert len(np.load(tmp_path / "frames")) == 1


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "frames").symlink_to(tmp_path / "mine")
    file = FrameFile(tmp_path / "frames")
    file.append(np.zeros((4, 4, 3), np.uint8))
    file.close()
    assert (tmp_path / "mine").read_text() == "precious"
