"""Which older frames a frame recalls: those whose view shows most of the ground that it shows itself.

A frame reads its sinks and its window. What they do not show of its view, an older frame may: recall finds it
by pose alone: no attention is computed and no content is looked at, so the choice is a function of the actions, the
same in every stage, placement and schedule, and it is known as soon as the action is.

Poses are the upper left corners of views on a torus, in its units; all arithmetic is in whole numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from heapq import heapify, heappop, heapreplace

__all__ = ["Pose", "Recall", "View"]

Pose = tuple[int, int]
"""(y, x)"""


@dataclass(frozen=True, slots=True)
class View:
    """What a frame shows: a rectangle on a torus."""

    torus: int
    """Sides of the torus"""
    height: int
    width: int

    def shown(self, own: Pose, other: Pose) -> int:
        """The cells of the view at `own` that the view at `other` shows as well, as bits of a number."""
        return _shown(self)[(other[0] - own[0]) % self.torus][(other[1] - own[1]) % self.torus]

    @property
    def whole(self) -> int:
        """All cells of a view."""
        return (1 << self.height * self.width) - 1


@cache
def _shown(view: View) -> tuple[tuple[int, ...], ...]:
    """By how far the other view lies below and to the right: the cells that both show."""

    def common(size: int, offset: int) -> list[int]:
        return [place for place in range(size) if (place - offset) % view.torus < size]

    lines = [sum(1 << column for column in common(view.width, right)) for right in range(view.torus)]
    rows = [[row * view.width for row in common(view.height, down)] for down in range(view.torus)]
    return tuple(tuple(sum(line << row for row in below) for line in lines) for below in rows)


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
    _rows: dict[int, dict[int, int]] = field(init=False, default_factory=dict)
    """The same by the rows of the torus that they are on: only those near a view can show some of it"""
    _chosen: dict[int, tuple[int, ...]] = field(init=False, default_factory=dict)

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
            self._rows.setdefault(place[0], {})[place[1]] = other
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
        lookers = _Lookers(self.view.whole)
        near = [place for other, place in self._recent if other < self.sinks or other >= frame - self.window]
        for place in [*self._sinks, *near]:
            lookers.add(self.view.shown(pose, place))
        # What a frame is worth only falls while others are chosen, so the best of the old values is looked at again,
        # until one stays the best.
        table, torus, (down, right) = _shown(self.view), self.view.torus, pose
        ranked = []
        for row, others in self._rows.items():
            shown = table[(row - down) % torus]
            if not any(shown):
                continue
            for column, other in others.items():
                cells = shown[(column - right) % torus]
                if cells and (worth := lookers.worth(cells)):
                    ranked.append((-worth, -cells.bit_count(), -other, cells))
        heapify(ranked)
        chosen: list[int] = []
        while ranked and len(chosen) < self.count:
            old, size, other, cells = ranked[0]
            worth = lookers.worth(cells)
            if worth != -old:
                heapreplace(ranked, (-worth, size, other, cells)) if worth else heappop(ranked)
                continue
            heappop(ranked)
            lookers.add(cells)
            chosen.append(-other)
        return tuple(sorted(chosen))


@dataclass(slots=True)
class _Lookers:
    """How many of the frames that are read show each cell of the view, as sets of cells that none, one and two show.

    A cell is worth the less the more of them show it: 16, 4, 1, and nothing from three on. With one frame alone to
    remember a place by, the embedded model forgets it more often; with very many that show it as it was long ago, it
    does not see how it changed since.
    """

    none: int
    one: int = 0
    two: int = 0

    def add(self, cells: int) -> None:
        """One more frame that is read shows some cells."""
        self.two = self.two & ~cells | self.one & cells
        self.one = self.one & ~cells | self.none & cells
        self.none &= ~cells

    def worth(self, cells: int) -> int:
        """What a frame is worth that shows some cells."""
        return (
            16 * (cells & self.none).bit_count() + 4 * (cells & self.one).bit_count() + (cells & self.two).bit_count()
        )
