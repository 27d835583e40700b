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

A line of the journal is `{"session": 0, "frame": 17, "what": "fewer_steps", "value": 1}`, with a CRC-32C of itself:
session, frame, what was decided, and its value: for `fewer_steps` the first step that the frame computed, for `repeat`
how often the frame before it was shown again. A run without approximations leaves it empty. `paceline run --replay`
takes them again.

Frames are numbered from 0, the first generated one, in all files.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from paceline.launch.outputs.aligned import aligned
from paceline.launch.outputs.atomic import write_atomic, write_bytes
from paceline.runtime.journal import encode_decision
from paceline.runtime.result import Decision, RunResult
from paceline.runtime.spec import RunSpec

__all__ = ["write_outputs"]

Frames = npt.NDArray[np.uint8]
_log = logging.getLogger(__name__)


def write_outputs(
    out: Path,
    spec: RunSpec,
    result: RunResult,
    summary: Mapping[str, Any],
    frames: Mapping[int, Frames],
    truth: Mapping[int, Frames] | None,
) -> list[Path]:
    """Write the files of a run into the folder `out` and return their paths in the order they were written.

    `frames` and `truth` are uint8 `[T, H, W, 3]` per session: generated frames without the prompt, and those of the
    true world under the same actions; empty and None where the workload makes no frames. The folder is made where it is
    missing. Files appear whole or not at all; older ones of the same name are replaced, others are left alone. The
    cheap and irreplaceable ones come first. Raises `ValueError` for frames of another shape or type, and `OSError`
    where `out` can't be written.
    """
    for kind, arrays in (("frames", frames), ("truth", truth or {})):
        for session, array in arrays.items():
            if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3:
                found = f"{array.dtype} {list(array.shape)}"
                raise ValueError(f"{kind} of session {session} must be uint8 [T, H, W, 3], not {found}")
    out.mkdir(parents=True, exist_ok=True)
    pictured = {session: array for session, array in sorted(frames.items()) if array.size}

    written = [
        write_bytes(out / "summary.json", msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n"),
        write_bytes(out / "journal.jsonl", _journal(result.decisions)),
    ]
    written += [_save(out / f"session-{session}.npy", array) for session, array in pictured.items()]

    # Imported here: a run without --out needs neither matplotlib nor pillow.
    from paceline.launch.outputs.gantt import write_gantt
    from paceline.launch.outputs.latency import write_latency
    from paceline.launch.outputs.sheet import write_sheet
    from paceline.launch.outputs.trace import trace_json

    result = aligned(result, spec.topology.context.prompt if spec.topology.workload == "world" else 0)
    written.append(write_bytes(out / "trace.json", trace_json(spec, result)))
    written.append(write_atomic(out / "gantt.png", lambda path: write_gantt(path, spec, result, summary)))
    written.append(write_atomic(out / "latency.png", lambda path: write_latency(path, spec, result)))
    if pictured:
        written.append(write_atomic(out / "contact-sheet.png", lambda path: write_sheet(path, spec, pictured, truth)))
    for session, array in pictured.items():
        written += _videos(out, session, array, spec.topology.deadline_ms)
    return written


def _journal(decisions: list[Decision]) -> bytes:
    return b"".join(map(encode_decision, decisions))


def _save(path: Path, array: Frames) -> Path:
    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:  # np.save would add .npy to a bare path
            np.save(file, array, allow_pickle=False)

    return write_atomic(path, save)


def _videos(out: Path, session: int, array: Frames, deadline_ms: float | None) -> list[Path]:
    from paceline.launch.outputs.video import VideoError, frames_per_second, write_gif, write_mp4

    fps = frames_per_second(deadline_ms)
    written = [write_atomic(out / f"session-{session}.gif", lambda path: write_gif(path, array, fps))]
    try:
        written.append(write_atomic(out / f"session-{session}.mp4", lambda path: write_mp4(path, array, fps)))
    except VideoError as error:
        _log.warning("session-%d.mp4 was not written, see the GIF: %s", session, error)
    return written
