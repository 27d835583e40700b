"""Everything that `--out DIR` collects.

| file | what it is |
|---|---|
| `summary.json` | the summary that the command prints |
| `journal.jsonl` | the approximations that the run took, one JSON object a line in the order they were taken |
| `session-K.npy` | the frames of session K, `[T, H, W, 3]` uint8, without the prompt |
| `session-K.mp4`, `session-K.gif` | the same as video (no MP4 without ffmpeg; the GIF has the first 600 frames) |
| `contact-sheet.png` | generated frames above those of the true world |
| `trace.json` | Chrome trace, for https://ui.perfetto.dev |
| `gantt.png`, `latency.png` | which group worked on which frame; cadence |

While a run goes on, frames and journal grow in `session-K.npy.part` and `journal.jsonl.part`; they get their names when
it is over, also where it was interrupted or failed. After a kill that nothing can see to, they are there under these
names, whole up to the last frame. A run that ended early has no trace and no Gantt picture.

A line of the journal is `{"session": 0, "frame": 17, "what": "fewer_steps", "value": 1}`, with a CRC-32C of itself:
session, frame, what was decided, and its value: for `fewer_steps` the first step that the frame computed, for `repeat`
how often the frame before it was shown again. A run without approximations leaves it empty. `paceline run --replay`
takes them again.

Frames are numbered from 0, the first generated one, in all files.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from paceline.launch.files import fill, write_atomic, write_bytes
from paceline.launch.outputs.timeline import aligned
from paceline.launch.outputs.video import NoEncoderError, frames_per_second, write_gif, write_mp4
from paceline.launch.records import frames_of, truth_of
from paceline.launch.summary import Summary
from paceline.runtime.result import FRAMES_FILE, JOURNAL_FILE, TRUTH_FILE, Result, RunResult
from paceline.runtime.spec import GenerateSpec, RunSpec

__all__ = ["FrameOutputs", "summary_step", "timeline_steps", "tried", "write_pictures", "write_results"]


Frames = npt.NDArray[np.uint8]
Step = Callable[[], object]
Watch = Callable[[str, int, int], None]
_log = logging.getLogger(__name__)
_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")


def write_results(out: Path, summary: Mapping[str, Any], sessions: Sequence[int]) -> list[str]:
    """Write `summary.json` into `out`, and give the journal and the frames of `sessions` their names.

    Files appear whole or not at all; older ones of the same name are replaced, others are left alone. Returns what
    could not be done, with the reasons.
    """
    parts = [JOURNAL_FILE, *(FRAMES_FILE.format(session) for session in sessions)]
    steps = summary_step(out, summary)
    for part in parts:
        name = part.removesuffix(".part")
        steps[name] = partial(os.replace, out / part, out / name)
    return tried(out, steps)


def summary_step(out: Path, summary: Mapping[str, Any]) -> dict[str, Step]:
    """The step that writes `summary.json`, of any workload."""
    content = msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n"
    return {"summary.json": partial(write_bytes, out / "summary.json", content)}


def timeline_steps(
    out: Path, spec: RunSpec | GenerateSpec, result: Callable[[], Result[Any]], summary: Mapping[str, Any]
) -> dict[str, Step]:
    """The steps that write trace and Gantt picture, of any workload. `result` gives the `aligned` result."""

    def trace(path: Path) -> None:
        from paceline.launch.outputs.trace import trace_json

        fill(path, trace_json(spec, result()))

    def gantt(path: Path) -> None:
        from paceline.launch.outputs.gantt import write_gantt

        write_gantt(path, spec, result(), summary)

    draw = {"trace.json": trace, "gantt.png": gantt}
    return {name: partial(write_atomic, out / name, write) for name, write in draw.items()}


def write_pictures(
    out: Path,
    spec: RunSpec,
    result: RunResult,
    summary: Mapping[str, Any],
    frames: Mapping[int, Frames],
    truth: Mapping[int, Frames] | None,
    watch: Watch = lambda name, done, total: None,
) -> list[str]:
    """Write trace, pictures and videos of a run into `out`. Returns what could not be written, with the reasons.

    `frames` and `truth` are uint8 `[T, H, W, 3]` per session: generated frames without the prompt, and those of the
    true world under the same actions; empty and None where the workload makes no frames. `watch` is told the name of
    each file before it is made, how many are done, and how many there are. Raises `ValueError` for frames of another
    shape or type.
    """
    for kind, arrays in (("frames", frames), ("truth", truth or {})):
        for session, array in arrays.items():
            if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3:
                found = f"{array.dtype} {list(array.shape)}"
                raise ValueError(f"{kind} of session {session} must be uint8 [T, H, W, 3], not {found}")
    # Imported here: a run without --out needs neither matplotlib nor pillow.
    from paceline.launch.outputs.latency import write_latency
    from paceline.launch.outputs.sheet import write_sheet

    _remove_leftovers(out)
    pictured = {session: array for session, array in sorted(frames.items()) if array.size}
    result = aligned(result, spec.topology.prompt_frames)
    steps = timeline_steps(out, spec, lambda: result, summary) if result.ranks else {}
    draw: dict[str, Callable[[Path], None]] = {}
    if result.ranks or result.times:
        draw["latency.png"] = lambda path: write_latency(path, spec, result)
    if pictured:
        draw["contact-sheet.png"] = lambda path: write_sheet(path, spec, pictured, truth)
    for session, array in pictured.items():
        draw |= _videos(session, array, spec.topology.deadline_ms)
    steps |= {name: partial(write_atomic, out / name, write) for name, write in draw.items()}
    lost = tried(out, steps, watch)
    for ended in result.sessions:
        (out / TRUTH_FILE.format(ended.id)).unlink(missing_ok=True)
        if not ended.frames:
            (out / FRAMES_FILE.format(ended.id)).unlink(missing_ok=True)
    return lost


def tried(out: Path, steps: Mapping[str, Step], watch: Watch | None = None) -> list[str]:
    """Take every step, by the name of the file in `out` that it writes, whatever becomes of those before it. `watch` is
    told of each. Returns what failed, with the reasons."""
    lost = []
    for done, (name, step) in enumerate(steps.items()):
        if watch is not None:
            watch(name, done, len(steps))
        try:
            step()
        except NoEncoderError as error:
            _log.warning("%s was not written, see the GIF: %s", name, error)
        except OSError as error:
            lost.append(f"{out / name}: {error.strerror or error}")
        except Exception as error:
            _log.debug("%s", name, exc_info=True)
            lost.append(f"{out / name}: {type(error).__name__}: {error}")
    return lost


def _remove_leftovers(out: Path) -> None:
    """Remove temporary files of processes that were killed."""
    for path in out.iterdir():
        match = _TEMPORARY.fullmatch(path.name)
        if match is not None and not Path("/proc", match[1]).exists():
            path.unlink(missing_ok=True)


def _videos(session: int, array: Frames, deadline_ms: float | None) -> dict[str, Callable[[Path], None]]:
    fps = frames_per_second(deadline_ms)
    return {
        f"session-{session}.gif": lambda path: write_gif(path, array, fps),
        f"session-{session}.mp4": lambda path: write_mp4(path, array, fps),
    }


class FrameOutputs:
    """See `Outputs`."""

    def __init__(self, out: Path, spec: RunSpec, result: RunResult) -> None:
        """Maps the frames that are in `out`, before they get their names: that leaves the maps as they are."""
        self._out, self._spec, self._result = out, spec, result
        self._frames, self._truth = frames_of(out, result.sessions), truth_of(out, result.sessions)

    def write_results(self, summary: Summary) -> list[str]:
        return write_results(self._out, summary, sorted(self._frames))

    def write_pictures(self, summary: Summary, watch: Callable[[str, int, int], None]) -> list[str]:
        return write_pictures(
            self._out, self._spec, self._result, summary, self._frames, self._truth or None, watch
        )  # fmt: skip
