"""The summary's numbers, on a run that is small enough to count by hand."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import msgspec
from rich.console import Console

from paceline.launch.summary import summarize
from paceline.launch.tables import print_summary
from paceline.runtime.result import Decision, EdgeUse, FrameTime, RankReport, RunResult, SessionResult
from paceline.runtime.spec import RunSpec
from tests.launch.synthetic import chain_spec

SPEC = chain_spec(2, sessions=2, frames=4, deadline_ms=100.0)
# Session 0 shows a frame each 100 ms, session 1 each 200 ms after a slow start.
SHOWN = {0: [0.1, 0.2, 0.3, 0.4], 1: [0.1, 1.0, 1.2, 1.4]}


def result() -> RunResult:
    times = [
        FrameTime(session, frame, at - 0.05 * (frame + 1), at, 0.35 if session == 0 else math.nan)
        for session, shown in SHOWN.items()
        for frame, at in enumerate(shown)
    ]
    ranks = [
        RankReport(
            rank, f"g{rank}", "some-host", 4000 + rank, "cpu", rank + 1, [f"step{rank}"], 0.5 + rank / 4, 1.0,
            {f"step{rank}": 10.0 + rank, "both": 1.0 + 2 * rank}, 2**20, [],
            [EdgeUse(1, 0, 1, "zmq", 8, 800, 2, 200)] if rank == 0 else [], {f"{rank}/2": "ab"},
        )
        for rank in range(2)
    ]  # fmt: skip
    sessions = [SessionResult(n, 4, str(n) * 64, n, [8, 8, 3]) for n in range(2)]
    return RunResult(sessions, 1.6, ranks, times, [Decision(0, 3, "fewer_steps", 1)])


def test_numbers() -> None:
    summary = summarize(SPEC, result())
    assert summary["frames_per_second"] == 5.0
    assert summary["period_ms"] == 150.0
    assert summary["latency_ms"] == {"p50": 125.0, "p99": 200.0}
    # Of session 0 only the last frame is late, by 50 ms; session 1 has no deadline.
    assert summary["lateness_ms"] == {"p50": 0.0, "p99": 48.5, "max": 50.0}
    assert summary["stage_ms"] == {"step0": 10.0, "both": 2.0, "step1": 11.0}
    assert summary["bubble"] == {"0": 0.5, "1": 0.25}
    assert summary["kv_sha256"] == {"0/2": "ab", "1/2": "ab"}
    assert summary["decisions"] == [{"session": 0, "frame": 3, "what": "fewer_steps", "value": 1}]
    assert summary["machine"]["threads"] == 3
    assert [edge["items"] for edge in summary["edges"]] == [8]


def test_tiers_of_a_group_are_those_of_its_ranks_together() -> None:
    found = result()
    assert summarize(SPEC, found)["tiers"] == {}

    def statistics(hbm: int, omitted: float, **errors: int) -> dict[str, Any]:
        return {
            "hits": {"hbm": hbm, "dram": 2}, "lookups": hbm + 2, "errors": errors,
            "omitted_mass": {"max": omitted, "mean": omitted},
        }  # fmt: skip

    first, second = found.ranks
    ranks = [
        msgspec.structs.replace(first, tiers=statistics(5, 0.1, checksum=1)),
        msgspec.structs.replace(second, group=first.group, tiers=statistics(7, 0.3)),
    ]
    tiers = summarize(SPEC, msgspec.structs.replace(found, ranks=ranks))["tiers"]
    assert tiers == {
        first.group: {
            "hits": {"hbm": 12, "dram": 4}, "lookups": 16, "errors": {"checksum": 1},
            "omitted_mass": {"max": 0.3, "mean": 0.2},
        }
    }  # fmt: skip


def test_a_session_that_failed_is_named_and_spoils_no_number() -> None:
    found = result()
    one, other = found.sessions
    # Session 1 showed one frame, which has no period.
    ended = msgspec.structs.replace(other, frames=1, failed="stage late on rank 1, at frame 2: no room")
    times = [time for time in found.times if time.session == 0 or time.frame == 0]
    summary = summarize(SPEC, msgspec.structs.replace(found, sessions=[one, ended], times=times))
    assert [session["failed"] for session in summary["sessions"]] == [None, ended.failed]
    assert summary["warnings"] == ["session 1 failed at frame 1: stage late on rank 1, at frame 2: no room"]
    assert summary["period_ms"] == 100.0
    console = Console(width=120, record=True, file=io.StringIO())
    print_summary(console, summary)
    assert "failed at frame 1" in console.export_text()
    none = [msgspec.structs.replace(session, frames=0, failed="x") for session in found.sessions]
    summary = summarize(SPEC, msgspec.structs.replace(found, sessions=none, times=[], wall_s=0.0))
    assert [summary[name] for name in ("frames_per_second", "period_ms", "lateness_ms")] == [None, None, None]
    json.dumps(summary, allow_nan=False)


def test_names_that_scripts_rely_on() -> None:
    summary = json.loads(json.dumps(summarize(SPEC, result()), allow_nan=False))
    named = {"topology", "seed", "sessions", "frames_per_second", "period_ms", "latency_ms", "machine"}
    extra = {"warnings", "lateness_ms", "kv_sha256", "stage_ms", "bubble", "edges", "ranks", "on_late", "decisions"}
    assert named | extra <= set(summary)
    assert {"id", "frames", "outputs_sha256", "late", "failed"} <= set(summary["sessions"][0])
    assert {"p50", "p99"} <= set(summary["latency_ms"])
    assert {"cpu", "cores", "ram_bytes", "threads", "python", "torch", "paceline", "platform"} <= set(
        summary["machine"]
    )


def test_it_does_not_say_where_it_ran() -> None:
    text = json.dumps(summarize(SPEC, result()))
    assert "some-host" not in text
    assert "4001" not in text


def test_a_run_of_one_frame_has_no_period() -> None:
    one = msgspec.structs.replace(result(), times=result().times[:1])
    summary = summarize(RunSpec(SPEC.topology, 1, 1, 0), one)
    assert summary["period_ms"] is None
    assert summary["latency_ms"] == {"p50": 50.0, "p99": 50.0}


def test_tables_hold_every_rank_and_session() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    print_summary(console, summarize(SPEC, result()))
    text = console.export_text()
    for part in (
        "world-2, seed 7",
        "5.00",
        "150.00 ms",
        "g0",
        "g1",
        "step0 10.00",
        "25%",
        "111111111111",
        "late frames",
    ):
        assert part in text
