"""How much the error of each pixel of a training sequence counts.

Paint and moving balls are few pixels and rare, so a plain mean would learn them last. They count more, but only where
the sequence shows enough to be certain of them: elsewhere a weight would change the odds of what an unseen tile shows.
Ground that has just come into view counts more too: there a rollout decides what the world is, and the frames after it,
which are denoised while it is still deciding, must follow. That weight depends on the poses alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from zoo.world.environment import PAINT, TILES, TORUS, VIEW, Bytes, Ints, ball_pixels, ground_in_view

__all__ = ["BALL", "FRESH", "PAINTED", "SETTLING", "emphasis", "times_shown"]

PAINTED = 16.0  # weight of a tile from the frame on in which it is painted
BALL = 8.0  # weight of a ball that the sequence showed in the two frames before
FRESH = 2.0  # weight of ground that the sequence shows for the first time, after its first frame
SETTLING = 4.0  # ... for the second to fourth time

Floats32 = npt.NDArray[np.float32]
At = tuple[Ints, Ints]


def emphasis(ground: Bytes, balls: Ints, agent: Ints, action: Ints, pose: Ints, at: At) -> Floats32:
    """Weights of the pixels of the frames `at` (rows `[B, 1]`, frames `[B, F]`) of episodes: `[B * F, 32, 32]`.

    Args: ground `[B, T, 24, 24]`; balls `[B, T, 6, 2]`; agent, pose `[B, T, 2]`; action `[B, T]`.
    """
    painted = ground_in_view(_painted(ground, agent, action, at).reshape(-1, TILES, TILES), pose[at].reshape(-1, 2))
    shown_F = times_shown(pose[at])
    later = np.arange(pose[at].shape[1])[:, None, None] > 0
    settles = np.where((shown_F == 0) & later, FRESH, np.where((shown_F >= 1) & (shown_F <= 3), SETTLING, 1.0))
    weights: Floats32 = np.maximum(painted, settles.reshape(painted.shape)).astype(np.float32)
    seen = np.where(_foreseen(balls, pose, at)[..., None], balls[at], pose[at][:, :, None] + TORUS // 2)
    shown = ball_pixels(seen.reshape(-1, *seen.shape[2:]), pose[at].reshape(-1, 2))
    weights[shown] = np.maximum(weights[shown], BALL)
    return weights


def times_shown(pose_BF2: Ints) -> Ints:
    """How many earlier frames of its sequence show the ground under each pixel, `[B, F, 32, 32]`."""
    counts = np.zeros((len(pose_BF2), 2 * TORUS, 2 * TORUS), np.int64)
    out = []
    for pose in pose_BF2.swapaxes(0, 1):
        y, x = ((2 * pose[:, axis, None] + np.arange(4 * VIEW)) % (2 * TORUS) for axis in (0, 1))
        at = (np.arange(len(pose))[:, None, None], y[:, :, None], x[:, None, :])
        out.append(counts[at])
        counts[at] += 1
    return np.stack(out, axis=1)


def _painted(ground: Bytes, agent: Ints, action: Ints, at: At) -> Floats32:
    """Weights of the tiles of the ground, `[B, F, 24, 24]`."""
    rows, frames = at
    tile = agent[at] // 2
    here = ground[(*at, tile[..., 0], tile[..., 1])]
    before = ground[rows, np.maximum(frames - 1, 0), tile[..., 0], tile[..., 1]]
    painted = (action[at] == PAINT) & (here != before)
    counts = np.ones((*frames.shape, TILES, TILES), np.float32)
    for row, frame in zip(*np.nonzero(painted), strict=True):
        counts[row, frame:, tile[row, frame, 0], tile[row, frame, 1]] = PAINTED
    return counts


def _foreseen(balls: Ints, pose: Ints, at: At) -> npt.NDArray[np.bool_]:
    """Which balls `[B, F, 6]` were wholly in view in the two episode frames before, which the sequence shows too."""
    rows, frames = at
    corner = (balls - pose[:, :, None]) % TORUS
    whole = np.all(corner <= 2 * VIEW - 2, axis=-1)[rows, frames]
    follows = np.zeros_like(whole)
    follows[:, 1:] = (frames[:, 1:] == frames[:, :-1] + 1)[..., None]
    known: npt.NDArray[np.bool_] = np.zeros_like(whole)
    known[:, 2:] = whole[:, 1:-1] & whole[:, :-2] & follows[:, 2:] & follows[:, 1:-1]
    return known
