"""What a denoising step reads of earlier frames: the four context modes.

Level s of a frame is the KV that its step s computed, so level 0 comes from pure noise; the last level, equal to the
number of steps S, is the KV of the clean pass on the finished frame. Prompt frames are clean at every level.

Beside its sinks and its window a pass may read older frames that show the same ground (`context.recall`, chosen in
`recall.py`). Which ones depends on where the session looks; what flows between stages does not: the finished KV of
every frame goes wherever a pass may come to recall it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from paceline.pipeline.topology import ContextMode, ContextSpec
from paceline.pipeline.view import Pose, View

if TYPE_CHECKING:
    from paceline.pipeline.recall import Recall

__all__ = ["FOREVER", "Context", "Read", "level_read", "slot_of"]

FOREVER = 1 << 60
"""A frame that no session comes to."""


def level_read(mode: ContextMode, steps: int, step: int, distance: int) -> int:
    """The level that `step` of a frame reads of the frame `distance >= 1` before it, out of `steps` steps.

    clean: the finished frame. cascade: step + distance, which is what that frame is at when all frames in flight
    advance together (Rolling Forcing, Block Cascading 2511.20426). staggered: one slot older. matched: the same step
    (LiveAvatar).
    """
    match mode:
        case ContextMode.clean:
            return steps
        case ContextMode.cascade:
            return min(step + distance, steps)
        case ContextMode.staggered:
            return min(step + distance - 1, steps)
        case ContextMode.matched:
            return step


def slot_of(mode: ContextMode, steps: int, frame: int, step: int) -> int:
    """The slot in which the lock-step schedule computes `step` of `frame`: the diagonal frame + step, or, in mode
    `clean`, one pass after another."""
    return frame * (steps + 1) + step if mode is ContextMode.clean else frame + step


@dataclass(frozen=True, slots=True)
class Read:
    """One frame that a pass reads, at a level."""

    frame: int
    level: int


@dataclass(slots=True)
class Context:
    """The reads of every pass of one session, with the frames that began at a later step (`fewer_steps`)."""

    mode: ContextMode
    steps: int
    window: int
    sinks: int
    prompt: int
    end: int | None
    """One past the last frame of the session; None where no end is known, and every frame may have later ones"""
    first_steps: dict[int, int] = field(default_factory=dict)
    recall: int = 0
    """Most older frames that a pass reads beside sinks and window"""
    view: View | None = None
    """What a frame shows; needed where frames are recalled"""
    _recall: Recall | None = field(init=False, default=None)
    _most_first_steps: int = 64

    @classmethod
    def of(cls, spec: ContextSpec, steps: int, prompt: int, end: int | None, view: View | None = None) -> Context:
        """The context of a topology, for a session of frames before `end`, or for one without an end."""
        return cls(spec.mode, steps, spec.window, spec.sinks, prompt, end, recall=spec.recall, view=view)

    @property
    def reach(self) -> int:
        """Frames before its own that a pass reads by distance or can't recall yet. Where steps outnumber the window,
        the frames just behind it are still in work."""
        return max(self.window, self.steps) if self.recall else self.window

    @property
    def written(self) -> int:
        """How far behind the frame that a context memory is read for the last one lies that is in it: one that has left
        the window and is finished in every placement of the steps. Frames in flight never touch the memory."""
        return max(self.window, self.steps) + 1

    @property
    def lasting(self) -> range:
        """The levels at which frames are read long after they were in work: that of the finished frame, or, in mode
        `matched`, all."""
        return range(0 if self.mode is ContextMode.matched else self.steps, self.steps + 1)

    @property
    def recallable(self) -> range:
        """The levels at which frames are recalled."""
        return self.lasting if self.recall else range(0)

    def observe(self, frame: int, pose: Pose) -> tuple[int, ...]:
        """Note where `frame` looks, in order of frames and before its reads are asked for. Returns frames that no
        frame from this one on will recall any more.

        Raises `ValueError` for a frame out of order, or where frames are recalled and `view` is not known.
        """
        if not self.recall:
            return ()
        if self._recall is None:
            if self.view is None:
                raise ValueError("frames can't be recalled by pose where it is not known what a view shows")
            held = self.steps + 2
            # Imported here: it needs NumPy, which contexts that recall nothing do without.
            from paceline.pipeline.recall import Recall

            self._recall = Recall(self.recall, self.window, self.sinks, self.reach, held, self.view)
        return self._recall.observe(frame, pose)

    def recalled(self, frame: int) -> tuple[int, ...]:
        """The older frames that `frame` reads at every step, oldest first; `observe` it before."""
        if not self.recall:
            return ()
        if self._recall is None:
            raise ValueError(f"frame {frame} recalls frames by its pose, which is not known yet; call observe() before")
        return self._recall.frames(frame)

    def frames(self, frame: int) -> list[int]:
        """The older frames that `frame` reads, oldest first: the sinks, what it recalls, the window."""
        return self._frames(frame, self.recalled(frame))

    def begin(self, frame: int, first_step: int) -> None:
        """Record that `frame` skips the steps before `first_step`.

        Raises `ValueError` where the last step would be skipped too, or `first_step` is below `earliest_step`.
        """
        earliest = self.earliest_step(frame)
        if not earliest <= first_step < self.steps:
            raise ValueError(
                f"frame {frame} can't begin at step {first_step}: it must be one of {earliest}..{self.steps - 1}, as "
                f"frame {frame - 1} began at step {self.first_step(frame - 1)}"
            )
        if first_step:
            self.first_steps[frame] = first_step
            if len(self.first_steps) > self._most_first_steps:
                self._trim(frame)

    def _trim(self, frame: int) -> None:
        """Forget where frames began that are so old that it decides about no read any more. A level above all steps
        in work stands for itself; only `matched` looks at older frames: sinks, those in its window, recalled ones."""
        oldest = frame - self.steps - 2
        if self.mode is ContextMode.matched:
            oldest -= self.reach
        kept = {old: first for old, first in self.first_steps.items() if old >= oldest}
        if self.mode is ContextMode.matched:
            lasting = {*range(self.sinks), *(self._recall.candidates() if self._recall is not None else ())}
            kept |= {old: self.first_steps[old] for old in lasting if old in self.first_steps}
        self.first_steps = kept
        self._most_first_steps = 2 * len(kept) + 64

    def earliest_step(self, frame: int) -> int:
        """The first step that `frame` may begin at: at most one before the step that its predecessor began at.

        A frame that skips k steps starts k slots late. Its successor, computed one slot behind, would else read KV that
        does not exist yet. In mode `clean` frames follow one another, and in mode `matched` a frame that was not at a
        step is not read there, so both may begin anywhere.
        """
        if self.mode in (ContextMode.clean, ContextMode.matched):
            return 0
        return max(self.first_step(frame - 1) - 1, 0)

    def first_step(self, frame: int) -> int:
        """The first step that `frame` computes."""
        return self.first_steps.get(frame, 0)

    def reads(self, frame: int, step: int) -> tuple[Read, ...]:
        """What pass (frame, step) reads, oldest frame first: the sinks, what it recalls, the window."""
        return self._reads(frame, step, self.recalled(frame))

    def arrivals(self, frame: int, step: int) -> tuple[Read, ...]:
        """What has to have come for pass (frame, step), oldest frame first, wherever the session looks: the sinks, the
        frame that can be recalled from now on, the window. Older ones have come for earlier passes."""
        newest = frame - self.reach - 1
        return self._reads(frame, step, (newest,) if self.recall and newest >= self.sinks else ())

    def fresh(self, frame: int, step: int) -> tuple[Read, ...]:
        """Those of `arrivals` that can be the first of their frame and level for `step`, oldest frame first.

        From `steps` + 1 frames back on a level no longer changes with the distance (`level_read`), and a frame that is
        read at all there was read by the frame before this one, at the same level. So a window of any length brings
        nothing new beyond, but what leaves it and may be recalled from now on."""
        oldest = max(frame - self.steps - 2, 0)
        frames = [other for other in range(oldest, frame) if other >= frame - self.window or other < self.sinks]
        newest = frame - self.reach - 1
        if self.recall and newest >= self.sinks and newest not in frames:
            frames = sorted([newest, *frames])
        return self._levels(frames, frame, step)

    def _reads(self, frame: int, step: int, recalled: tuple[int, ...]) -> tuple[Read, ...]:
        return self._levels(self._frames(frame, recalled), frame, step)

    def _frames(self, frame: int, recalled: tuple[int, ...]) -> list[int]:
        oldest = max(frame - self.window, 0)
        return [*range(min(self.sinks, oldest)), *recalled, *range(oldest, frame)]

    def _levels(self, frames: Sequence[int], frame: int, step: int) -> tuple[Read, ...]:
        """Frames with the levels at which pass (frame, step) reads them."""
        reads = [Read(other, self.level(other, step, frame - other)) for other in frames]
        if self.mode is ContextMode.matched:
            # Its group has no KV of a frame that skipped this step, and no other group's KV travels.
            reads = [read for read in reads if read.level >= self.first_step(read.frame)]
        return tuple(reads)

    def recalled_levels(self, frame: int, step: int) -> tuple[int, ...]:
        """The level at which `step` recalls `frame`, or nothing where `frame` has none for it (see `_reads`)."""
        level = self.level(frame, step, self.reach + 1)
        return (level,) if self.mode is not ContextMode.matched or level >= self.first_step(frame) else ()

    def level(self, frame: int, step: int, distance: int) -> int:
        """The level at which `step` reads `frame`, `distance` frames back. A level that the frame skipped stands for
        the first one above it that it computed; in mode `matched` nothing does (see `reads`)."""
        if frame < self.prompt:
            return self.steps
        if self.mode is ContextMode.matched:
            return step
        return max(level_read(self.mode, self.steps, step, distance), self.first_step(frame))

    def needed(self, frame: int, level: int, steps: tuple[int, ...]) -> bool:
        """Whether some later pass of one of `steps` reads `frame` at `level`."""
        return frame >= self.prompt and any(self.last_reader(frame, level, step) >= 0 for step in steps)

    def last_reader(self, frame: int, level: int, step: int) -> int:
        """The last frame whose pass at `step` reads `frame` at `level`, or may recall it; -1 where there is none.
        Without an end, that of a frame that is read for ever is `FOREVER`."""
        last = FOREVER if self.end is None else self.end - 1
        farthest = last - frame
        if frame >= self.sinks:
            if self.recall and farthest > self.reach and level in self.recalled_levels(frame, step):
                return last
            farthest = min(farthest, self.window)
        if frame < self.prompt:
            return frame + farthest if level == self.steps and farthest >= 1 else -1
        first = 0 if self.mode is ContextMode.matched else self.first_step(frame)
        probe = min(farthest, max(self.window, self.steps + 1))
        distance = _last_distance(self.mode, self.steps, step, level, first, probe)
        # Beyond `steps` frames the level no longer changes with the distance.
        return -1 if distance == 0 else frame + (farthest if distance == probe else distance)


@cache
def _last_distance(mode: ContextMode, steps: int, step: int, level: int, first: int, probe: int) -> int:
    """The largest distance up to `probe` at which `step` reads `level` of a frame that began at step `first`, or 0."""
    if probe > 0 and max(level_read(mode, steps, step, probe), first) == level:
        return probe
    # Beyond `steps` + 1 frames the level is the same at all distances.
    for distance in range(min(probe - 1, steps + 1), 0, -1):
        if max(level_read(mode, steps, step, distance), first) == level:
            return distance
    return 0
