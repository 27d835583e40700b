"""What ranks tell the leader at the end: reports of fixed size, and events in pieces that messages can hold."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest

from paceline.runtime.report_exchange import ReportExchange
from paceline.runtime.result import EVENTS_KEPT, Event, FrameTime, RankReport
from paceline.runtime.run import run_rank
from paceline.runtime.spec import RunSpec
from paceline.runtime.spool import Spool, read_spool
from tests.runtime.pairs import connected, topology

LIMIT = 8192


def report(rank: int) -> RankReport:
    return RankReport(
        rank, "g", f"host-{rank}", 1, "cpu", 1, ["step0"], 0.5, 1.0, {"step0": 1.0}, 2**20, [], [], {}
    )  # fmt: skip


def event(frame: int) -> Event:
    return Event(1, "step0", 0, "layers", frame, 0, 0, frame / 7, frame / 7 + 0.1)


@pytest.mark.parametrize("shared", [False, True])
def test_events_of_another_host_are_fetched(tmp_path: Path, shared: bool) -> None:
    folders = [tmp_path / "here", tmp_path / ("here" if shared else "there")]
    for folder in set(folders):
        folder.mkdir()
    # Both files of the spool hold some.
    spool = Spool(folders[1] / "events-1.spool", keep=900)
    for frame in range(1500):
        spool.write(event(frame))
    spool.close()
    assert sum(path.stat().st_size for path in folders[1].iterdir()) > 5 * LIMIT
    with connected(topology("zmq", max_message=LIMIT)) as ends:
        exchanges = [
            ReportExchange(end, folder, LIMIT, lambda: None)
            for end, folder in zip((ends.source, ends.target), folders, strict=True)
        ]
        other = threading.Thread(target=exchanges[1].give, args=(0, report(1)))
        other.start()
        found = exchanges[0].gather(with_events=True)
        other.join(10)
        assert not other.is_alive(), "the run did not end for the other rank"
    assert found == [report(1)]
    assert read_spool(folders[0] / "events-1.spool", Event, EVENTS_KEPT) == [event(frame) for frame in range(1500)]


def test_results_do_not_grow_with_the_run(tmp_path: Path) -> None:
    lengths = []
    for frames in (100, 1600):
        folder = tmp_path / str(frames)
        folder.mkdir()
        spec = RunSpec(topology("local", ranks=1), frames, 2, 0, out=folder)
        result = run_rank(spec, 0, 1, folder)
        assert result is not None
        lengths.append(len(msgspec.msgpack.encode(result)))
        times = read_spool(folder / "times-1.spool", FrameTime)
        assert [time.frame for time in times] == list(range(frames))
    # Larger numbers take a few bytes more.
    assert lengths[1] <= lengths[0] + 40
