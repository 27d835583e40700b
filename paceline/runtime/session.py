"""A session on the rank of its source: where its items come from, and where its frames end."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from paceline.kernels.philox import session_seed
from paceline.pipeline.deadline import Decisions, Pacer
from paceline.pipeline.program import Program, Unit
from paceline.pipeline.topology import LatePolicy
from paceline.runtime.result import FRAMES_FILE, TIMES_FILE, TIMES_KEPT, TRUTH_FILE, Decision, FrameTime, SessionResult
from paceline.runtime.spec import RunSpec
from paceline.runtime.spool import FrameFile, Spool
from paceline.runtime.timeline import now
from paceline.stages.failed import failure_in
from paceline.stages.feed import Feed, PayloadFeed
from paceline.stages.item import Item, Key, Meta
from paceline.stages.world_file import world_of

__all__ = ["Session", "SinkStage", "SourceStage", "span_of"]


class Session:
    """Seed, inputs, cadence and committed outputs of one session. Nothing here grows with its length but the files.

    Frames and those of the true world are files in the folder for outputs, times one in the run's folder. A frame that
    can't be written, on a disk that is full, is still shown and hashed; `unsaved` says so, and no more are written.
    """

    def __init__(
        self,
        spec: RunSpec,
        session: int,
        run_dir: Path,
        decisions: list[Decision] | None,
        journal: Callable[[Decision], None],
    ) -> None:
        """`decisions` are taken again in place of new ones; `journal` is told of each that is taken. Raises `OSError`
        where the file of times can't be made."""
        topology = spec.topology
        self.id = session
        self.seed = session_seed(spec.seed, session)
        self.prompt = topology.prompt_frames
        self.frames = spec.frames
        self._shape: tuple[int, ...] = ()
        self._digest = hashlib.sha256()
        self._emitted: dict[int, float] = {}
        self.started_s = math.inf
        self.ended_s = -math.inf
        self.shown = 0
        self.pictures = 0
        self.late = 0
        self.failed: str | None = None
        self.unsaved: list[str] = []
        self._journal = journal
        self._times = Spool(run_dir / TIMES_FILE.format(session), TIMES_KEPT)
        self._files: dict[str, FrameFile | None] = {}
        world = world_of(topology.model.weights) if topology.workload == "world" else None
        self._makes_pictures = world is not None
        self._out = spec.out if self._makes_pictures else None
        self.feed: Feed
        if world is None:
            self.feed = PayloadFeed(self.seed, topology.item_bytes)
        else:
            self.feed = world.feed(self.seed, self.prompt, on_truth=self._write_truth if self._out else None)
        replayed = None
        if decisions is not None:
            taken: dict[str, dict[int, int]] = {LatePolicy.fewer_steps: {}, LatePolicy.repeat: {}}
            for decision in decisions:
                if decision.session == session:
                    taken[decision.what][decision.frame] = decision.value
            replayed = Decisions(taken[LatePolicy.fewer_steps], taken[LatePolicy.repeat])
        period = None if topology.deadline_ms is None else topology.deadline_ms / 1000
        self.pacer = Pacer(period, topology.on_late, topology.steps, replayed)

    def emit(self, position: int) -> tuple[tuple[Tensor, ...], Meta]:
        """Tensors and metadata of the next item."""
        tensors, meta = self.feed.next(position)
        index = position - self.prompt
        if index >= 0:
            emitted_s = now()
            if self.failed is None:
                self._emitted[index] = emitted_s
                self.started_s = min(self.started_s, emitted_s)
            first = self.pacer.emit(index, emitted_s)
            if first:
                meta["first_step"] = first
                self._journal(Decision(self.id, index, LatePolicy.fewer_steps.value, first))
        return tensors, meta

    def show(self, position: int, content: Tensor) -> None:
        """Commit one finished frame: pictures `[K, H, W, 3]` of a world, bytes of another workload. Frames come in
        order. Of a session that failed nothing more is shown."""
        if self.failed is not None:
            return
        index = position - self.prompt
        if index != self.shown:
            raise ValueError(f"session {self.id}: frame {index} reached the sink, {self.shown} was next")
        shown_s = now()
        self.shown += 1
        array = content.numpy() if content.dtype == torch.uint8 else content.view(torch.uint8).numpy()
        self._digest.update(array.tobytes())
        pictures = array if self._makes_pictures else array[None]
        self._shape = pictures.shape[1:]
        self.pictures += len(pictures)
        if self._out is not None:
            for picture in pictures:
                self._save(FRAMES_FILE, picture)
        shown = self.pacer.show(index, shown_s)
        self.late += shown.late_s > 0
        if shown.repeats:
            self._journal(Decision(self.id, index, LatePolicy.repeat.value, shown.repeats))
        self.ended_s = shown_s
        self._times.write(FrameTime(self.id, index, self._emitted.pop(index), shown_s, shown.due_s))

    def fail(self, why: str) -> None:
        """End what is shown. Its program runs on, unseen: actions are taken as ever, and what is decided with them is
        journaled, as the steps that a frame may skip depend on the frame before, in a replay too."""
        if self.failed is None:
            self.failed = why
            self._emitted.clear()

    def result(self) -> SessionResult:
        """What came out."""
        return SessionResult(
            self.id, self.shown, self._digest.hexdigest(), self.late, list(self._shape), self.failed, self.pictures
        )

    def close(self) -> None:
        """Close the files."""
        self._times.close()
        for file in self._files.values():
            if file is not None:
                file.close()
        self._files.clear()

    def _write_truth(self, frame: np.ndarray) -> None:
        if self.failed is None:
            self._save(TRUTH_FILE, frame)

    def _save(self, name: str, frame: np.ndarray) -> None:
        """Append to a file of frames, unless it has failed before."""
        if self._out is None:
            raise ValueError("this run keeps no frames")
        path = self._out / name.format(self.id)
        try:
            if name not in self._files:
                self._files[name] = FrameFile(path)
            file = self._files[name]
            if file is not None:
                file.append(frame)
        except OSError as error:
            broken = self._files.get(name)
            kept = 0 if broken is None else broken.frames
            if broken is not None:
                broken.close()
            self._files[name] = None
            if name == TRUTH_FILE:
                return  # needed for the contact sheet alone, which does without
            self.unsaved.append(f"{path}: {error.strerror or error}; it ends after {kept} frames")


def span_of(sessions: Iterable[Session]) -> tuple[float, float]:
    """When the first action of some sessions was taken and their last frame shown; zeros where none was shown."""
    shown = [session for session in sessions if session.shown]
    if not shown:
        return 0.0, 0.0
    return min(session.started_s for session in shown), max(session.ended_s for session in shown)


class SourceStage:
    """Sends what each session's feed gives."""

    def __init__(self, sessions: Mapping[int, Session]) -> None:
        self._sessions = sessions

    def open(self, session: int, program: Program) -> None:
        """Nothing to keep."""

    def close(self, session: int) -> None:
        """Nothing to free."""

    def warm(self) -> None:
        """Nothing to warm."""

    def run(self, units: Sequence[Unit], taken: Sequence[Sequence[Item]]) -> list[list[Item]]:
        """See `Stage.run`."""
        out = []
        for unit in units:
            tensors, meta = self._sessions[unit.session].emit(unit.frame)
            out.append([Item(Key(g.edge, unit.session, g.position, g.part), tensors, meta) for g in unit.gives])
        return out


class SinkStage:
    """Commits finished frames. The first one that carries the mark of a failure ends what is shown of its session."""

    def __init__(self, sessions: Mapping[int, Session], notify: Callable[[], None]) -> None:
        self._sessions = sessions
        self._notify = notify

    def open(self, session: int, program: Program) -> None:
        """Nothing to keep."""

    def close(self, session: int) -> None:
        """Nothing to free."""

    def warm(self) -> None:
        """Nothing to warm."""

    def run(self, units: Sequence[Unit], taken: Sequence[Sequence[Item]]) -> list[list[Item]]:
        """See `Stage.run`."""
        for unit, (item,) in zip(units, taken, strict=True):
            session, failure = self._sessions[unit.session], failure_in(item.meta)
            if failure is not None:
                session.fail(failure)
            else:
                session.show(unit.frame, item.tensors[0])
            self._notify()
        return [[] for _ in units]
