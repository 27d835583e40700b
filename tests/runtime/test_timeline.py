"""What a rank notes of its work: medians of passes, events in a file, nothing that grows in memory."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median

from hypothesis import given
from hypothesis import strategies as st

from paceline.pipeline.program import Row, Unit, UnitKind
from paceline.runtime.program_actor import spans_of
from paceline.runtime.result import Event
from paceline.runtime.spool import read_spool
from paceline.runtime.timeline import PASSES_KEPT, PassTimes, Timeline


@given(st.lists(st.tuples(st.integers(0, 2), st.lists(st.floats(0.001, 1), min_size=1, max_size=3)), max_size=30))
def test_a_pass_takes_what_its_units_take_together(passes: list[tuple[int, list[float]]]) -> None:
    """Streams of three sessions interleave; within one, passes come one after another."""
    times = PassTimes()
    expected = []
    units = []
    for number, (session, seconds) in enumerate(passes):
        expected.append(sum(seconds))
        units += [(session, number, second) for second in seconds]
    # Any interleaving of sessions: sorted by session here, which keeps the order of each.
    for session, number, second in sorted(units, key=lambda unit: unit[0]):
        times.add("step0", session, [(number, 0)], second)
    assert times.medians_ms() == ({"step0": 1000 * median(expected)} if expected else {})


def test_rows_of_one_forward_are_passes_of_their_own() -> None:
    times = PassTimes()
    times.add("steps", 0, [(3, 1), (4, 0)], 0.5)
    times.add("steps", 0, [(4, 1), (5, 0)], 0.7)
    assert times.medians_ms() == {"steps": 600.0}


def unit(frame: int, layer: int) -> Unit:
    return Unit("step0", 0, UnitKind.layers, frame, frame, (Row(frame, 0),), (layer, layer + 1))


def size_of(found: object, seen: set[int] | None = None) -> int:
    """Bytes of an object and all that it holds."""
    seen = set() if seen is None else seen
    if id(found) in seen or isinstance(found, type):
        return 0
    seen.add(id(found))
    held: list[object] = []
    if isinstance(found, dict):
        held = [*found.keys(), *found.values()]
    elif hasattr(found, "__dict__"):
        held = list(vars(found).values())
    elif hasattr(found, "__iter__") and not isinstance(found, str | bytes | Path):
        held = list(found)
    return sys.getsizeof(found) + sum(size_of(item, seen) for item in held)


def test_memory_does_not_grow_with_the_run(tmp_path: Path) -> None:
    timeline = Timeline(0, tmp_path)
    sizes = []
    for frame in range(3 * PASSES_KEPT):
        for layer in range(2):
            timeline.ran(spans_of([unit(frame, layer)]), frame + layer / 4, frame + layer / 4 + 0.1)
        timeline.waited(frame + 0.6, frame + 0.9)
        if frame % PASSES_KEPT == PASSES_KEPT - 1:
            sizes.append(size_of(timeline))
    timeline.close()
    assert sizes[2] <= sizes[1] * 1.01
    assert timeline.passes.medians_ms().keys() == {"step0"}
    events = read_spool(tmp_path / "events-0.spool", Event)
    assert len(events) == 9 * PASSES_KEPT
    assert events[-1] == Event(0, "", -1, "wait", -1, -1, 0, frame + 0.6, frame + 0.9)


def test_without_a_folder_no_file_is_made(tmp_path: Path) -> None:
    timeline = Timeline(0, None)
    timeline.ran(spans_of([unit(0, 0)]), 0.0, 0.25)
    timeline.waited(0.25, 0.5)
    timeline.close()
    assert (timeline.busy_s, timeline.wait_s) == (0.25, 0.25)
    assert timeline.passes.medians_ms() == {"step0": 250.0}
    assert list(tmp_path.iterdir()) == []
