"""The glyph world: a small procedural world whose every frame is known, to train a world model on and to score it.

The ground is a torus of 24 x 24 tiles of 4 x 4 pixels. A tile shows one of 40 glyphs, a colour (8) times a shape (5);
the fifth shape, `full`, only painting makes, so an unseen tile is drawn uniformly from the other 32. An agent walks
over the ground in half tiles and six balls cross it in straight lines. The view shows 8 x 8 tiles (32 x 32 pixels)
ahead of the agent, so that walking pans it and turning swings it.

Everything follows from the seed and the actions. Positions count half tiles (2 pixels) on a torus of 48.

Shape suffixes: K views or worlds at once, Y and X rows and columns of tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from paceline.stages.dit.config import FrameCondition

__all__ = [
    "ACTIONS",
    "ATLAS",
    "GlyphWorld",
    "Worlds",
    "ball_pixels",
    "glyphs_in_view",
    "ground_in_view",
    "occluded_pixels",
    "pose_of",
    "render",
]

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

TILES = 24  # tiles along a side of the torus
TORUS = 2 * TILES  # half tiles along a side
VIEW = 8  # tiles along a side of the view
PIXELS = 4 * VIEW
BALLS = 6
ACTIONS = ("stay", "walk", "left", "right", "paint")
STAY, WALK, LEFT, RIGHT, PAINT = range(5)
HEADINGS = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]])  # north, east, south, west as (y, x)

COLOURS = np.array(
    [
        [235, 40, 40],
        [240, 145, 20],
        [235, 230, 50],
        [40, 175, 60],
        [50, 215, 225],
        [50, 80, 235],
        [205, 60, 215],
        [150, 150, 150],
    ]
)
SHAPES = ("ring", "cross", "diagonal", "dots", "full")
RING, FULL = 0, 4
# Any half of a shape (two rows or two columns) tells it from the others: tiles enter the view by halves.
_MASKS = np.array(
    [
        [[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]],
        [[1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1]],
        [[1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 0]],
        [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]],
        [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]],
    ]
)
_DIM = 0.2  # the background of a tile is its colour, dimmed


def _atlas() -> Bytes:
    mask = _MASKS[None, :, :, :, None]
    colour = COLOURS[:, None, None, None, :]
    return np.where(mask == 1, colour, (colour * _DIM).round()).reshape(-1, 4, 4, 3).astype(np.uint8)


ATLAS: Bytes = _atlas()
"""Pictures of the glyphs `[40, 4, 4, 3]`; glyph = 5 * colour + shape."""

_DISC = np.array([[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]]) == 1
_DISC_Y, _DISC_X = (index.astype(np.int64) for index in np.nonzero(_DISC))
_BALL = np.array([255, 255, 255], np.uint8)
_AGENT = np.array([[[255, 255, 255], [0, 0, 0]], [[0, 0, 0], [255, 255, 255]]], np.uint8)
_SPAN = np.arange(PIXELS)


def pose_of(agent_K2: Ints, heading_K: Ints) -> Ints:
    """Upper left corner of the view `[K, 2]` in half tiles, for agents at `[K, 2]` with headings `[K]`."""
    pose: Ints = (agent_K2 - 7 + 4 * HEADINGS[heading_K]) % TORUS
    return pose


def ball_pixels(balls: Ints, pose: Ints) -> tuple[Ints, Ints, Ints]:
    """View index, row and column of every visible pixel of balls `[K, 6, 2]` in views at `pose [K, 2]`."""
    corner = 2 * (balls - pose[:, None, :])
    y = (corner[..., 0, None] + _DISC_Y) % (2 * TORUS)
    x = (corner[..., 1, None] + _DISC_X) % (2 * TORUS)
    visible = (y < PIXELS) & (x < PIXELS)
    view = np.nonzero(visible)[0]
    return view, y[visible], x[visible]


def _agent_corner(heading_K: Ints) -> Ints:
    """First pixel (y, x) of the agent in the view `[K, 2]`."""
    corner: Ints = 2 * (7 - 4 * HEADINGS[heading_K])
    return corner


def ground_in_view(values: npt.NDArray[Any], pose: Ints) -> npt.NDArray[Any]:
    """One value for each tile of the ground, `[K, 24, 24]`, spread over the pixels of views at `pose [K, 2]`:
    `[K, 32, 32]`."""
    y = (2 * pose[:, 0, None] + _SPAN) % (2 * TORUS)
    x = (2 * pose[:, 1, None] + _SPAN) % (2 * TORUS)
    seen: npt.NDArray[Any] = values[np.arange(len(pose))[:, None, None], (y // 4)[:, :, None], (x // 4)[:, None, :]]
    return seen


def render(ground: Bytes, balls: Ints, agent: Ints, heading: Ints) -> Bytes:
    """Draw views.

    Args: ground `[K, 24, 24]` glyphs; balls `[K, 6, 2]` and agent `[K, 2]` in half tiles; heading `[K]`.
    Returns: `[K, 32, 32, 3]`.
    """
    pose = pose_of(agent, heading)
    k = np.arange(len(ground))
    y, x = ((2 * pose[:, axis, None] + _SPAN) % 4 for axis in (0, 1))
    frame: Bytes = ATLAS[ground_in_view(ground, pose), y[:, :, None], x[:, None, :]]
    frame[ball_pixels(balls, pose)] = _BALL
    corner = _agent_corner(heading)
    rows = corner[:, 0, None, None] + np.array([[0], [1]])
    columns = corner[:, 1, None, None] + np.array([[0, 1]])
    frame[k[:, None, None], rows, columns] = _AGENT
    return frame


def occluded_pixels(balls: Ints, agent: Ints, heading: Ints) -> Bools:
    """Which pixels of the views a ball or the agent covers, `[K, 32, 32]`."""
    hidden = np.zeros((len(agent), PIXELS, PIXELS), np.bool_)
    hidden[ball_pixels(balls, pose_of(agent, heading))] = True
    corner = _agent_corner(heading)
    for dy in (0, 1):
        for dx in (0, 1):
            hidden[np.arange(len(agent)), corner[:, 0] + dy, corner[:, 1] + dx] = True
    return hidden


def glyphs_in_view(pose: Ints) -> tuple[Ints, Ints, Bools]:
    """The tiles that lie fully inside views at `pose [K, 2]`.

    Returns: world coordinates `[K, 8, 8, 2]` in tiles, the first pixel of each in its view `[K, 8, 8, 2]`, and whether
    it is fully inside `[K, 8, 8]` (where the view stands on half a tile, the last row or column is not).
    """
    odd = pose % 2
    along = np.arange(VIEW)
    place = (pose[:, None, :] + odd[:, None, :]) // 2 + along[None, :, None]
    pixel = 2 * odd[:, None, :] + 4 * along[None, :, None]
    shape = (len(pose), VIEW, VIEW)
    inside_y = np.broadcast_to((pixel[:, :, 0] <= PIXELS - 4)[:, :, None], shape)
    inside_x = np.broadcast_to((pixel[:, :, 1] <= PIXELS - 4)[:, None, :], shape)

    def both(a: Ints) -> Ints:
        y = np.broadcast_to(a[:, :, None, 0], shape)
        return np.stack([y, np.broadcast_to(a[:, None, :, 1], shape)], axis=-1)

    return both(place % TILES), both(pixel), inside_y & inside_x


class Worlds:
    """Several worlds that advance together, one per seed; a world does not depend on its neighbours."""

    _BLOCK = 128  # policy draws of one world are made this many steps at a time

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = [int(seed) for seed in seeds]
        self.clock = 0
        ground, balls, drift, agent, heading = [], [], [], [], []
        for seed in self.seeds:
            draw = self._generator(seed, 0, 0)
            colour = draw.integers(0, len(COLOURS), (TILES, TILES))
            ground.append((5 * colour + draw.integers(0, FULL, (TILES, TILES))).astype(np.uint8))
            balls.append(draw.integers(0, TORUS, (BALLS, 2)))
            drift.append(HEADINGS[draw.integers(0, 4, BALLS)])
            agent.append(draw.integers(0, TORUS, 2))
            heading.append(draw.integers(0, 4))
        self.ground: Bytes = np.stack(ground)
        self.balls: Ints = np.stack(balls)
        self.drift: Ints = np.stack(drift)
        self.agent: Ints = np.stack(agent)
        self.heading: Ints = np.array(heading)
        self.action: Ints = np.full(len(self.seeds), STAY)
        self._draws = np.zeros((len(self.seeds), 0, 2))

    @staticmethod
    def _generator(seed: int, purpose: int, block: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=seed, counter=[0, block, purpose, 0]))

    @property
    def pose(self) -> Ints:
        """Upper left corners of the views `[K, 2]` in half tiles."""
        return pose_of(self.agent, self.heading)

    def policy_actions(self) -> Ints:
        """The default action source: a Markov walk with turns, stops and paint; a function of seed and clock."""
        step = self.clock % self._BLOCK
        if step == 0 or self._draws.shape[1] == 0:
            block = self.clock // self._BLOCK
            self._draws = np.stack([self._generator(s, 1, block).random((self._BLOCK, 2)) for s in self.seeds])
        u, side = self._draws[:, step, 0], self._draws[:, step, 1]
        tile = self.agent // 2
        ring = self.ground[np.arange(len(u)), tile[:, 0], tile[:, 1]] % 5 == RING
        paint = np.where(ring, 0.3, 0.03)
        # After a turn a second one to the same side is likely, so that the walk comes back over its own track.
        turned = (self.action == LEFT) | (self.action == RIGHT)
        turn = np.where(turned, 0.3, 0.08)
        turning = np.where(turned, self.action, np.where(side < 0.5, LEFT, RIGHT))
        return np.select([u < paint, u < paint + turn, u < paint + turn + 0.04], [PAINT, turning, STAY], WALK)

    def step(self, actions: Ints) -> None:
        """Advance every world by one frame under `actions [K]`."""
        k = np.arange(len(self.seeds))
        self.heading = (self.heading + (actions == RIGHT) - (actions == LEFT)) % 4
        self.agent = (self.agent + HEADINGS[self.heading] * (actions == WALK)[:, None]) % TORUS
        tile = self.agent // 2
        glyph = self.ground[k, tile[:, 0], tile[:, 1]]
        painted = (actions == PAINT) & (glyph % 5 == RING)
        self.ground[k, tile[:, 0], tile[:, 1]] = np.where(painted, glyph + (FULL - RING), glyph)
        self.balls = (self.balls + self.drift) % TORUS
        self.action = actions
        self.clock += 1

    def frames(self) -> Bytes:
        """What the worlds show now, `[K, 32, 32, 3]`."""
        return render(self.ground, self.balls, self.agent, self.heading)


class GlyphWorld:
    """One world for the runtime: an action source, the conditions of frames, and the true frames of the prompt."""

    def __init__(self, seed: int) -> None:
        self.worlds = Worlds([seed])

    def policy_action(self) -> int:
        """The default policy's next action."""
        return int(self.worlds.policy_actions()[0])

    def advance(self, action: int) -> None:
        """Apply an action. Raises `ValueError` for an unknown one."""
        if not 0 <= action < len(ACTIONS):
            raise ValueError(f"action {action} is unknown; actions are 0..{len(ACTIONS) - 1}: {', '.join(ACTIONS)}")
        self.worlds.step(np.array([action]))

    def step(self, action: int) -> Bytes:
        """Apply an action; returns the true frame after it, `[32, 32, 3]`. Raises `ValueError` for an unknown one."""
        self.advance(action)
        return self.frame()

    def frame(self) -> Bytes:
        """The true frame now, `[32, 32, 3]`."""
        frame: Bytes = self.worlds.frames()[0]
        return frame

    def condition(self) -> FrameCondition:
        """Condition of the frame that the world shows now."""
        w = self.worlds
        pose = w.pose[0]
        return FrameCondition(int(w.action[0]), int(w.heading[0]), int(pose[0]), int(pose[1]))

    def prompt(self, frames: int = 4) -> list[tuple[FrameCondition, Bytes]]:
        """The first frames of the session with their conditions: the world as it stands, then policy steps."""
        shown = [(self.condition(), self.frame())]
        for _ in range(frames - 1):
            picture = self.step(self.policy_action())
            shown.append((self.condition(), picture))
        return shown
