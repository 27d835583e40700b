"""Records that are appended to files come back, as many as were asked for, also from a process that was killed."""

from __future__ import annotations

import math
import os
import resource
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paceline.runtime.result import Event, FrameTime
from paceline.runtime.spool import Spool, SpoolError, read_spool, spool_parts


def time(frame: int) -> FrameTime:
    return FrameTime(0, frame, frame / 3, frame / 3 + 0.1, math.inf)


@given(count=st.integers(0, 40), keep=st.none() | st.integers(1, 12), flush=st.integers(1, 9))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_newest_records_are_kept(tmp_path: Path, count: int, keep: int | None, flush: int) -> None:
    path = tmp_path / "times"
    spool = Spool(path, keep, flush)
    for frame in range(count):
        spool.write(time(frame))
    spool.close()
    found = read_spool(path, FrameTime, keep)
    assert found == [time(frame) for frame in range(count)][-(keep or count or 1) :]
    if keep is not None:
        assert len(read_spool(path, FrameTime)) <= 2 * keep


def test_a_number_that_is_none_comes_back(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "times")
    spool.write(FrameTime(0, 0, 1.0, 2.0, math.nan))
    spool.close()
    (found,) = read_spool(tmp_path / "times", FrameTime)
    assert math.isnan(found.due_s)


def test_every_cut_leaves_the_records_before_it(tmp_path: Path) -> None:
    path = tmp_path / "times"
    spool = Spool(path)
    ends = []
    for frame in range(3):
        spool.write(time(frame))
        ends.append(path.stat().st_size)
    spool.close()
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        assert read_spool(path, FrameTime) == [time(frame) for frame, end in enumerate(ends) if end <= length]


def test_a_new_spool_forgets_both_files_of_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / "times"
    for count in (5, 1):
        spool = Spool(path, keep=2)
        for frame in range(count):
            spool.write(time(frame))
        spool.close()
    assert read_spool(path, FrameTime) == [time(0)]
    assert read_spool(tmp_path / "missing", FrameTime) == []


def test_records_of_another_kind_are_refused(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "events")
    spool.write(Event(0, "a", 0, "layers", 0, 0, 0, 0.0, 1.0))
    spool.close()
    with pytest.raises(SpoolError, match="events: holds what is no FrameTime"):
        read_spool(tmp_path / "events", FrameTime)


def test_a_file_that_takes_no_more_is_named(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "times")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match="times") as error:
            for frame in range(100):
                spool.write(time(frame))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert error.value.filename == str(tmp_path / "times")
    spool.close()
    assert read_spool(tmp_path / "times", FrameTime) == [time(0), time(1)]
    assert os.path.getsize(spool_parts(tmp_path / "times")[1]) == 100
