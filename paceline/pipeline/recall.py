"""Which older frames a frame recalls: those whose view shows most of the ground that it shows itself.

A frame reads its sinks and its window. What they do not show of its view, an older frame may: recall finds it
by pose alone: no attention is computed and no content is looked at, so the choice is a function of the actions, the
same in every stage, placement and schedule, and it is known as soon as the action is.

All arithmetic is in whole numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.pipeline.view import Pose, View

__all__ = ["Recall", "shown"]


def shown(view: View, own: Pose, other: Pose) -> list[int]:
    """The places in the view at `own`, counted by rows, of the cells that the view at `other` shows as well."""
    near = _near(view)
    row = near.row_of[(other[0] - own[0]) % view.torus, (other[1] - own[1]) % view.torus]
    bits = np.unpackbits(near.cells[row].astype("<u8").view(np.uint8), bitorder="little")
    return np.flatnonzero(bits).tolist() if row >= 0 else []


class _Near(NamedTuple):
    """The other views that show some of a view, K of them, by where they lie on the torus."""

    down: NDArray[np.int64]
    """`[K]`, from the view"""
    right: NDArray[np.int64]
    cells: NDArray[np.uint64]
    """`[K, W]`: the cells that both show, as the bits of W words, those of one row behind those of the one above"""
    size: NDArray[np.int64]
    """`[K]`: how many these are"""
    row_of: NDArray[np.int64]
    """`[torus, torus]`: by how far a view lies below and to the right, its row of the above; -1: it shows nothing"""


@cache
def _near(view: View) -> _Near:
    def common(size: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """How far other views lie along one side of the torus, and which places both show, `[n, size]`."""
        offsets, places = np.arange(view.torus)[:, None], np.arange(size)
        both = (places - offsets) % view.torus < size
        shown = both.any(axis=1)
        return offsets[shown, 0], both[shown]

    (down, rows), (right, columns) = common(view.height), common(view.width)
    both = (rows[:, None, :, None] & columns[None, :, None, :]).reshape(len(down) * len(right), -1)
    words = np.zeros((len(both), -(-both.shape[1] // 64) * 64), dtype=np.bool_)
    words[:, : both.shape[1]] = both
    cells = np.packbits(words, axis=1, bitorder="little").view("<u8").astype(np.uint64)
    row_of = np.full((view.torus, view.torus), -1)
    row_of[down[:, None], right] = np.arange(len(both)).reshape(len(down), len(right))
    return _Near(np.repeat(down, len(right)), np.tile(right, len(down)), cells, both.sum(axis=1), row_of)


@dataclass(slots=True)
class Recall:
    """The recalled frames of one session. Tell it the pose of every frame, in order.

    Of frames with one and the same pose only the newest is a candidate: it shows the ground as it became. So there are
    never more candidates than poses on the torus, however long a session is.
    """

    count: int
    """Most frames that a frame recalls"""
    window: int
    sinks: int
    reach: int
    """Frames before the present one that are no candidates: the window, and those whose KV may not be clean yet"""
    held: int
    """Frames for which a choice is still asked after they were seen"""
    view: View
    seen: int = 0
    """Frames seen so far"""
    _recent: deque[tuple[int, Pose]] = field(init=False, default_factory=deque)
    """The last frames, not candidates yet"""
    _sinks: list[Pose] = field(init=False, default_factory=list)
    _candidates: dict[Pose, int] = field(init=False, default_factory=dict)
    _at: NDArray[np.int64] = field(init=False)
    """The same by pose, `[torus, torus]`; -1: none"""
    _chosen: dict[int, tuple[int, ...]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._at = np.full((self.view.torus, self.view.torus), -1)

    def observe(self, frame: int, pose: Pose) -> tuple[int, ...]:
        """Note where `frame` looks, and choose what it recalls. Returns the frames that this one and later ones will
        not recall any more, since a newer one looks at the same ground from the same place.

        Raises `ValueError` where frames do not come in order.
        """
        if frame != self.seen:
            raise ValueError(f"frame {frame} was seen by a recall that expected frame {self.seen}")
        self.seen += 1
        replaced = []
        while self._recent and self._recent[0][0] < frame - self.reach:
            other, place = self._recent.popleft()
            if other < self.sinks:
                self._sinks.append(place)
                continue
            if place in self._candidates:
                replaced.append(self._candidates[place])
            self._candidates[place] = other
            self._at[place] = other
        self._chosen[frame] = self._choose(frame, pose)
        self._chosen.pop(frame - self.held, None)
        self._recent.append((frame, pose))
        return tuple(replaced)

    def frames(self, frame: int) -> tuple[int, ...]:
        """What `frame` recalls, oldest first. Raises `KeyError` for a frame that was not seen, or long ago."""
        return self._chosen[frame]

    def candidates(self) -> Collection[int]:
        """The frames that a later one may recall, but for those that are too recent."""
        return self._candidates.values()

    def _choose(self, frame: int, pose: Pose) -> tuple[int, ...]:
        """One after another the frame that is worth most; of equal ones the one that shows most of the view, then the
        newest. A frame that is worth nothing is not recalled."""
        near, torus = _near(self.view), self.view.torus
        lookers = _Lookers(near.cells[near.row_of[0, 0]])
        read = [place for other, place in self._recent if other < self.sinks or other >= frame - self.window]
        for y, x in [*self._sinks, *read]:
            row = near.row_of[(y - pose[0]) % torus, (x - pose[1]) % torus]
            if row >= 0:
                lookers.add(near.cells[row])
        # As many poses show some of the view however long the session is.
        others = self._at[(near.down + pose[0]) % torus, (near.right + pose[1]) % torus]
        rows = np.flatnonzero(others >= 0)
        cells, size = near.cells[rows], near.size[rows]
        chosen: list[int] = []
        while len(rows) and len(chosen) < self.count:
            worth = lookers.worth(cells)
            most = int(worth.max())
            if not most:
                break
            ties = np.flatnonzero(worth == most)
            best = ties[np.lexsort((others[rows[ties]], size[ties]))[-1]]
            chosen.append(int(others[rows[best]]))
            lookers.add(cells[best])
            worth[best] = 0
            # What a frame is worth only falls while others are chosen.
            left = worth > 0
            rows, cells, size = rows[left], cells[left], size[left]
        return tuple(sorted(chosen))


@dataclass(slots=True)
class _Lookers:
    """How many of the frames that are read show each cell of the view, as sets of cells that none, one and two show:
    bits of words, `[W]` each.

    A cell is worth the less the more of them show it: 16, 4, 1, and nothing from three on. With one frame alone to
    remember a place by, the embedded model forgets it more often; with very many that show it as it was long ago, it
    does not see how it changed since.
    """

    none: NDArray[np.uint64]
    one: NDArray[np.uint64] = field(init=False)
    two: NDArray[np.uint64] = field(init=False)

    def __post_init__(self) -> None:
        self.one = np.zeros_like(self.none)
        self.two = np.zeros_like(self.none)

    def add(self, cells: NDArray[np.uint64]) -> None:
        """One more frame that is read shows some cells, `[W]`."""
        self.two = self.two & ~cells | self.one & cells
        self.one = self.one & ~cells | self.none & cells
        self.none = self.none & ~cells

    def worth(self, cells_NW: NDArray[np.uint64]) -> NDArray[np.int64]:
        """What each of N frames is worth that show some cells, `[N]`."""
        sums = [
            np.bitwise_count(cells_NW & some).sum(axis=1, dtype=np.int64) for some in (self.none, self.one, self.two)
        ]
        worth: NDArray[np.int64] = 16 * sums[0] + 4 * sums[1] + sums[2]
        return worth
