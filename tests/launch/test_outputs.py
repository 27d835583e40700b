"""What `--out` writes: whole files, the frames as they are, a trace that viewers take, pictures of any run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from msgspec.structs import replace
from PIL import Image, ImageSequence

from paceline.launch.files import write_atomic
from paceline.launch.outputs.style import session_letter
from paceline.launch.outputs.timeline import aligned, passes, runs, steady, union_s
from paceline.launch.outputs.trace import trace_json
from paceline.launch.outputs.write import write_pictures, write_results
from paceline.launch.records import read_journal
from paceline.runtime.journal import Journal
from paceline.runtime.result import FRAMES_FILE, JOURNAL_FILE, Event, FrameTime, RunResult
from paceline.runtime.spec import RunSpec
from paceline.runtime.spool import FrameFile
from tests.launch.synthetic import PROMPT, chain_spec, movie, run

PLOTS = ["trace.json", "gantt.png", "latency.png"]
Frames = npt.NDArray[np.uint8]


def write(out: Path, spec: RunSpec, result: RunResult, frames: dict[int, Frames] | None = None) -> list[str]:
    if frames is None:
        frames = {session: movie(spec.frames, session) for session in range(spec.sessions)}
    summary = {"topology": spec.topology.name, "p": [1, None]}
    told: list[str] = []
    lost = write_pictures(
        out, spec, result, summary, frames, frames or None, lambda name, done, total: told.append(name)
    )
    assert lost == []
    return told


def traced(spec: RunSpec, result: RunResult) -> list[dict[str, Any]]:
    document = msgspec.json.decode(trace_json(spec, aligned(result, PROMPT)))
    events: list[dict[str, Any]] = document["traceEvents"]
    return events


# -- files -------------------------------------------------------------------------------------------------------------


def test_all_files_are_written_and_no_other_is_touched(tmp_path: Path) -> None:
    spec = chain_spec(2, sessions=2, frames=12, deadline_ms=20)
    result = run(spec)
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "summary.json").write_text("of an earlier run")
    (out / ".gantt.png.999999999.tmp").write_text("of a process that was killed")
    journal = Journal(out / JOURNAL_FILE)
    for decision in result.decisions:
        journal.add(decision)
    journal.close()
    for session in (0, 1):
        file = FrameFile(out / FRAMES_FILE.format(session))
        for frame in movie(12, session):
            file.append(frame)
        file.close()
    assert write_results(out, {"topology": spec.topology.name, "p": [1, None]}, [0, 1]) == []
    names = write(out, spec, result)
    videos = [f"session-{k}.{kind}" for k in (0, 1) for kind in ("gif", "mp4")]
    assert sorted(names) == sorted([*PLOTS, "contact-sheet.png", *videos])
    arrays = ["session-0.npy", "session-1.npy"]
    assert {path.name for path in out.iterdir()} == {*names, *arrays, "summary.json", "journal.jsonl", "notes.txt"}
    assert (out / "notes.txt").read_text() == "mine"
    assert msgspec.json.decode((out / "summary.json").read_bytes()) == {"topology": "world-2", "p": [1, None]}
    assert read_journal(out / "journal.jsonl") == result.decisions != []
    for session in (0, 1):
        np.testing.assert_array_equal(np.load(out / f"session-{session}.npy", allow_pickle=False), movie(12, session))


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    spec = chain_spec(2, frames=8)
    result = run(spec)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    names = write(tmp_path / "a", spec, result)
    assert write(tmp_path / "b", spec, result) == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"old")

    def fail(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        write_atomic(path, fail)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.png"]
    assert path.read_bytes() == b"old"


def test_frames_of_a_wrong_type_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    spec = chain_spec(1, frames=2)
    wrong: Any = {0: np.zeros((2, 8, 8, 3), np.float32)}
    with pytest.raises(ValueError, match=r"session 0 must be uint8 \[T, H, W, 3\], not float32 \[2, 8, 8, 3\]"):
        write(tmp_path, spec, run(spec), wrong)
    assert list(tmp_path.iterdir()) == []


def test_importing_the_package_loads_no_plotting() -> None:
    code = "import sys, paceline.launch.outputs; sys.exit('matplotlib' in sys.modules or 'PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


# -- video -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "factor"), [(32, 8), (33, 8), (300, 1)])
def test_videos_show_the_frames_enlarged(tmp_path: Path, size: int, factor: int) -> None:
    spec = chain_spec(1, frames=5, deadline_ms=40)
    frames = np.tile(movie(5, 0), (1, 10, 10, 1))[:, :size, :size]
    write(tmp_path, spec, run(spec), {0: frames})
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(tmp_path / "session-0.mp4")]
    done = subprocess.run([*ffmpeg, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, timeout=60)
    side = size * factor
    says = done.stderr.decode()
    assert all(word in says for word in ("h264", "yuv420p", f"{side}x{side}", "25 fps")), says
    shown = np.frombuffer(done.stdout, np.uint8).reshape(-1, side, side, 3)
    assert len(shown) == 5
    middle = shown[:, factor // 2 :: factor, factor // 2 :: factor]
    if factor > 4:  # chroma is halved, so only inner pixels of large tiles keep their colour
        assert np.abs(middle.astype(int) - frames).mean() < 2
    with Image.open(tmp_path / "session-0.gif") as gif:
        assert gif.info["duration"] == 40
        assert gif.size[0] >= 256
        large = np.stack([np.asarray(page.convert("RGB")) for page in ImageSequence.Iterator(gif)])
    small = large[:, :: large.shape[1] // size, :: large.shape[2] // size]
    assert len(small) == 5
    assert np.abs(small.astype(int) - frames).mean() < 12


def test_a_long_session_has_a_short_gif_and_a_whole_mp4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paceline.launch.outputs.video.GIF_FRAMES", 4)
    spec = chain_spec(1, frames=9)
    write(tmp_path, spec, run(spec))
    with Image.open(tmp_path / "session-0.gif") as gif:
        assert len(list(ImageSequence.Iterator(gif))) == 4
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "session-0.mp4"))
    assert (frames, seconds) == (9, pytest.approx(9 / 12, abs=0.05))


def test_without_ffmpeg_there_is_still_a_gif(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none() -> str:
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", none)
    spec = chain_spec(1, frames=3)
    write(tmp_path, spec, run(spec))
    assert (tmp_path / "session-0.gif").exists()
    assert not (tmp_path / "session-0.mp4").exists()
    assert "session-0.mp4 was not written, see the GIF" in caplog.text
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: "/bin/false")
    lost = write_pictures(tmp_path, spec, run(spec), {}, {0: movie(3, 0)}, None)
    assert [line.partition(": VideoError: ffmpeg")[0] for line in lost] == [str(tmp_path / "session-0.mp4")]


def test_pictures_that_fail_leave_the_others_and_are_named(tmp_path: Path) -> None:
    spec = chain_spec(2, frames=4)
    for name in ("gantt.png", "session-0.gif"):
        (tmp_path / name).mkdir()
    lost = write_pictures(tmp_path, spec, run(spec), {}, {0: movie(4, 0)}, None)
    assert lost == [f"{tmp_path / name}: Is a directory" for name in ("gantt.png", "session-0.gif")]
    assert (tmp_path / "trace.json").exists()
    assert (tmp_path / "session-0.mp4").exists()
    assert not list(tmp_path.glob(".*.tmp"))


# -- trace -------------------------------------------------------------------------------------------------------------


def threads(events: Iterable[dict[str, Any]]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for event in events:
        if event["ph"] == "X":
            found.setdefault((event["pid"], event["tid"]), []).append(event)
    return found


@pytest.mark.parametrize(("ranks", "sessions", "mirrored"), [(4, 1, False), (4, 2, True), (1, 3, False)])
def test_the_trace_is_well_formed(ranks: int, sessions: int, mirrored: bool) -> None:
    events = traced(chain_spec(ranks, sessions, 12, mirrored=mirrored), run(chain_spec(ranks, sessions, 12)))
    timed = [event for event in events if event["ph"] != "M"]
    assert [event["ts"] for event in timed] == sorted(event["ts"] for event in timed)
    assert timed[0]["ts"] == 0
    assert all(event.get("dur", 0) >= 0 for event in timed)
    names = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    for place, slices in threads(timed).items():
        assert place in names
        open_ends: list[float] = []
        for event in slices:  # a slice ends before the one it lies in, or begins after it
            while open_ends and open_ends[-1] <= event["ts"] + 1e-6:
                open_ends.pop()
            assert not open_ends or event["ts"] + event["dur"] <= open_ends[-1] + 1e-6
            open_ends.append(event["ts"] + event["dur"])
    processes = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert processes == [*(f"rank {rank} · g{rank} (cpu)" for rank in range(ranks)), "run"]


def test_arrows_follow_each_latent_from_rank_to_rank() -> None:
    spec = chain_spec(3, 2, 10)
    events = traced(spec, run(spec))
    flows = [event for event in events if event["ph"] in "sf"]
    starts = {event["id"]: event for event in flows if event["ph"] == "s"}
    ends = {event["id"]: event for event in flows if event["ph"] == "f"}
    assert starts.keys() == ends.keys()
    assert len(flows) == 2 * len(starts)
    places = threads(events)

    def slice_at(flow: dict[str, Any]) -> dict[str, Any]:
        inside = [e for e in places[flow["pid"], flow["tid"]] if e["ts"] <= flow["ts"] <= e["ts"] + e["dur"]]
        return max(inside, key=lambda event: (event["ts"], event["dur"]))  # the outermost that began last

    hops: dict[tuple[int, int], set[tuple[str, str]]] = {}
    for number, start in starts.items():
        assert start["ts"] <= ends[number]["ts"]
        assert ends[number]["bp"] == "e"
        giver, taker = slice_at(start)["args"], slice_at(ends[number])["args"]
        assert (giver["session"], giver["frame"]) == (taker["session"], taker["frame"])
        hops.setdefault((giver["session"], giver["frame"]), set()).add((giver["stage"], taker["stage"]))
    way = set(pairwise(["source", "step0", "step1", "step2", "decode", "sink"]))
    generated = {key: hop for key, hop in hops.items() if key[1] >= 0}
    assert generated == {(session, frame): way for session in range(2) for frame in range(10)}
    assert {kind for key, hop in hops.items() if key[1] < 0 for kind in hop} == {("step0", "step1"), ("step1", "step2")}


def test_no_arrow_points_back_in_time() -> None:
    spec = chain_spec(2, frames=6)
    result = run(spec)
    late = [replace(e, start_s=e.start_s - 1, end_s=e.end_s - 1) for e in result.ranks[1].events]
    skewed = replace(result, ranks=[result.ranks[0], replace(result.ranks[1], events=late)])
    flows = [event for event in traced(spec, skewed) if event["ph"] in "sf"]
    starts = {event["id"]: event["ts"] for event in flows if event["ph"] == "s"}
    ends = {event["id"]: event["ts"] for event in flows if event["ph"] == "f"}
    assert starts.keys() == ends.keys()
    assert all(starts[number] <= ends[number] for number in starts)
    assert 0 < len(starts) < 5 * 6


def test_slices_say_what_ran_and_late_frames_are_marked() -> None:
    spec = chain_spec(4, frames=12, deadline_ms=5)
    events = traced(spec, run(spec))
    clean = [e for e in events if e["ph"] == "X" and e["name"] == "A · frame 3 · clean"]
    assert [event["args"] for event in clean] == [
        {"session": 0, "frame": 3, "step": "clean", "kind": "layers", "stage": "step3"}
    ]
    layers = [e["name"] for e in events if e["ph"] == "X" and e["args"]["frame"] == 3 and e["name"].startswith("layer")]
    assert layers[:6] == ["layer 0", "layer 1", "layer 2", "layer 3", "layer 4", "layers 5…"]
    marks = {event["name"] for event in events if event["ph"] == "i"}
    assert {"A · frame 11 late", "A · fewer_steps · frame 9"} <= marks
    counts = [event["args"]["frames"] for event in events if event["ph"] == "C"]
    assert min(counts) == 0 == counts[-1]
    assert max(counts) > 1
    assert [session_letter(session) for session in (0, 1, 25, 26, 27, 52)] == ["A", "B", "Z", "AA", "AB", "BA"]


# -- time --------------------------------------------------------------------------------------------------------------


def test_steady_period_and_bubble_are_those_of_the_middle() -> None:
    spec = chain_spec(1, frames=40, workload="sleep")
    result = run(spec, jitter=0.0)
    # 10 ms of work every 20 ms: half of the time is bubble, whatever the ends of the run look like.
    events = [Event(0, "step0", 0, "sleep", k, -1, 0, 5 + 0.02 * k, 5 + 0.02 * k + 0.01) for k in range(40)]
    times = [FrameTime(0, k, 5 + 0.02 * k, 5 + 0.02 * k + 0.01, float("nan")) for k in range(40)]
    timed = replace(result, ranks=[replace(result.ranks[0], events=events)], times=times)
    shifted = aligned(timed, 0)
    region = steady(shifted)
    assert region is not None
    assert region.period_s == pytest.approx(0.02)
    assert region.bubble == pytest.approx(0.5, abs=0.03)
    assert 0.15 < region.start_s < region.end_s < 0.7
    waits = [event for event in shifted.ranks[0].events if event.kind == "wait"]
    assert len(waits) == 39
    assert all(wait.end_s - wait.start_s == pytest.approx(0.01) for wait in waits)
    assert steady(replace(shifted, times=shifted.times[:1])) is None


def test_sessions_that_ran_one_after_another_are_steady_in_the_first() -> None:
    result = run(chain_spec(1, 2, 20, workload="sleep"))
    events = [
        Event(0, "step0", s, "sleep", k, -1, 0, s + 0.02 * k, s + 0.02 * k + 0.02) for s in (0, 1) for k in range(20)
    ]
    times = [FrameTime(event.session, event.frame, event.start_s, event.end_s, float("nan")) for event in events]
    region = steady(aligned(replace(result, ranks=[replace(result.ranks[0], events=events)], times=times), 0))
    assert region is not None
    assert (region.start_s, region.end_s, region.period_s) == pytest.approx((0.12, 0.32, 0.02))
    assert region.bubble == pytest.approx(0, abs=1e-9)


def test_units_of_a_step_are_one_pass_with_its_pauses() -> None:
    units = [
        Event(0, "late", 0, "layers", 7, 1, layer, t, t + 0.001) for layer, t in ((0, 0.0), (1, 0.001), (2, 0.005))
    ]
    following = Event(0, "late", 0, "layers", 7, 2, 0, 0.006, 0.007)
    wait = Event(0, "", -1, "wait", -1, -1, 0, 0.002, 0.005)
    first, second = passes([following, *units, wait])
    assert (first.step, first.start_s, first.end_s, second.step) == (1, 0.0, 0.006, 2)
    assert runs(first, 1e-4) == [(0.0, 0.002), (0.005, 0.006)]
    assert union_s([(0, 2), (1, 3), (5, 6)]) == 4


# -- pictures ----------------------------------------------------------------------------------------------------------


def picture(path: Path) -> Frames:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_the_contact_sheet_holds_generated_above_true(tmp_path: Path) -> None:
    spec = chain_spec(2, frames=30)
    made, real = movie(30, 0), movie(30, 1)
    write_pictures(tmp_path, spec, run(spec), {}, {0: made}, {0: real})
    sheet = picture(tmp_path / "contact-sheet.png")

    def place(frame: Frames) -> tuple[int, int]:
        large = frame.repeat(4, 0).repeat(4, 1)
        height, width = sheet.shape[0] - 127, sheet.shape[1] - 127
        for y, x in np.argwhere((sheet[:height, :width] == large[0, 0]).all(-1)):
            if np.array_equal(sheet[y : y + 128, x : x + 128], large):
                return int(y), int(x)
        raise LookupError("the frame is not on the sheet")

    (y, x), (true_y, true_x), (next_y, next_x) = place(made[3]), place(real[3]), place(made[6])
    assert (true_x, next_y) == (x, y)
    assert true_y >= y + 128
    assert next_x >= x + 128
    with pytest.raises(LookupError):
        place(made[4])  # 30 frames in 12 columns: every third


@pytest.mark.parametrize(
    "spec",
    [
        chain_spec(1, frames=1),
        chain_spec(2, frames=2, deadline_ms=10),
        chain_spec(4, 7, 6, mirrored=True),
        chain_spec(256, 2, 20, workload="sleep"),
    ],
    ids=["one-frame", "two-frames", "many-sessions", "256-ranks"],
)
def test_pictures_of_any_run(tmp_path: Path, spec: RunSpec) -> None:
    world = spec.topology.workload == "world"
    names = write(tmp_path, spec, run(spec), None if world else {})
    assert set(PLOTS) <= set(names)
    assert ("contact-sheet.png" in names) == world
    for name in ("gantt.png", "latency.png"):
        pixels = picture(tmp_path / name)
        assert 400 < pixels.shape[0] < 4000
        assert len(np.unique(pixels.reshape(-1, 3)[::17], axis=0)) > 10


def test_a_run_without_events_or_frames_is_still_written(tmp_path: Path) -> None:
    spec = chain_spec(2, frames=4)
    result = run(spec)
    bare = replace(result, times=[], ranks=[replace(report, events=[]) for report in result.ranks])
    assert write(tmp_path, spec, bare, {}) == PLOTS
