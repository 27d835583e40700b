"""Frames as video: MP4 by the ffmpeg that imageio-ffmpeg brings, GIF by pillow."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

__all__ = ["GIF_FRAMES", "NoEncoderError", "VideoError", "frames_per_second", "upscale", "write_gif", "write_mp4"]

Frames = npt.NDArray[np.uint8]

SHOWN_PIXELS = 256
GIF_FRAMES = 600
"""A GIF grows by some 15 kB a frame, five times what an MP4 takes; longer sessions are for the MP4."""
_DEFAULT_FPS = 12.0
_TIMEOUT_S = 600.0


def frames_per_second(deadline_ms: float | None) -> float:
    """How fast the video plays: as the deadline says, else 12 frames per second."""
    return 1000.0 / deadline_ms if deadline_ms else _DEFAULT_FPS


def upscale(frame: Frames, factor: int) -> Frames:
    """Repeat each pixel `factor` times both ways: `[..., H, W, 3]` to `[..., factor H, factor W, 3]`."""
    return np.repeat(np.repeat(frame, factor, axis=-3), factor, axis=-2)


def _factor(frames: Frames) -> int:
    height, width = frames.shape[1:3]
    return int(-(-SHOWN_PIXELS // min(height, width)))


class VideoError(RuntimeError):
    """A video could not be encoded."""


class NoEncoderError(VideoError):
    """This machine can't encode video."""


def write_mp4(path: Path, frames: Frames, fps: float) -> None:
    """Write `frames` `[T, H, W, 3]` as H.264 in yuv420p. Raises `NoEncoderError` where ffmpeg is missing, and
    `VideoError` where it fails.

    The same frames give the same bytes: no time stamps, no tool versions, one thread.
    """
    executable = _ffmpeg()
    height, width = frames.shape[1:3]
    factor = _factor(frames)
    if (height * factor) % 2 or (width * factor) % 2:
        factor += 1  # yuv420p halves both sides, so that they must be even
    command = [
        executable, "-hide_banner", "-loglevel", "error", "-y",
        "-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", f"{width}x{height}", "-framerate", f"{fps:.6f}",
        "-i", "-",
        # Say which matrix turns RGB into YUV, and write it down, or players show colours a little off.
        "-vf", f"scale=iw*{factor}:ih*{factor}:flags=neighbor:out_color_matrix=bt709:out_range=tv,format=yuv420p",
        "-c:v", "libx264", "-preset", "medium", "-crf", "12", "-threads", "1",
        "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv",
        "-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1", "-movflags", "+faststart",
        "-f", "mp4", str(path),
    ]  # fmt: skip
    data = np.ascontiguousarray(frames)
    try:
        # A view and not `tobytes()`: the frames of a long session need not be in memory twice.
        done = subprocess.run(command, input=data.reshape(-1).data, capture_output=True, timeout=_TIMEOUT_S)
    except OSError as error:
        raise NoEncoderError(f"ffmpeg did not run: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise VideoError(f"ffmpeg did not end: {error}") from error
    if done.returncode != 0:
        raise VideoError(f"ffmpeg: {done.stderr.decode(errors='replace').strip()}")


def _ffmpeg() -> str:
    try:
        import imageio_ffmpeg

        return cast(str, imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise NoEncoderError(f"imageio-ffmpeg has no ffmpeg here: {error}") from error


def write_gif(path: Path, frames: Frames, fps: float) -> None:
    """Write the first `GIF_FRAMES` of `frames` `[T, H, W, 3]` as a looping GIF, each with its own palette.

    A GIF counts hundredths of a second, so that 12 frames per second become 12.5.
    """
    from PIL import Image

    factor = _factor(frames)

    def picture(frame: Frames) -> Image.Image:
        # The octree is as close as pillow's other ways and by far the fastest.
        exact = Image.fromarray(np.ascontiguousarray(frame))
        small = exact.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        return small.resize((small.width * factor, small.height * factor), Image.Resampling.NEAREST)

    first, *rest = frames[:GIF_FRAMES]
    duration = max(20, 10 * round(100.0 / fps))
    following = (picture(frame) for frame in rest)
    picture(first).save(
        path, format="GIF", save_all=True, append_images=following, duration=duration, loop=0, optimize=False
    )
