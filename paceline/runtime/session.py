"""A session on the coordinator: where its items come from, and where its frames end."""

from __future__ import annotations

import hashlib
from collections import deque
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from paceline.kernels.philox import session_seed
from paceline.pipeline.deadline import Pacer
from paceline.pipeline.topology import LatePolicy
from paceline.runtime.clock import now
from paceline.runtime.result import FRAMES_FILE, TRUTH_FILE, Decision, FrameTime, SessionResult
from paceline.runtime.spec import RunSpec
from paceline.stages.feed import Feed, PayloadFeed, WorldFeed
from paceline.stages.item import Meta

__all__ = ["Session"]

_KEPT_TIMES = 200_000


class Session:
    """Seed, inputs, cadence and committed outputs of one session. Nothing here grows with its length but the files."""

    def __init__(self, spec: RunSpec, session: int, run_dir: Path, decisions: list[Decision] | None) -> None:
        topology = spec.topology
        self.id = session
        self.seed = session_seed(spec.seed, session)
        world = topology.workload == "world"
        self.prompt = topology.context.prompt if world else 0
        self.frames = spec.frames
        self._shape: tuple[int, ...] = ()
        self._digest = hashlib.sha256()
        self._emitted: dict[int, float] = {}
        self.times: deque[FrameTime] = deque(maxlen=_KEPT_TIMES)
        self.decisions: list[Decision] = []
        self.shown = 0
        self.late = 0
        self.failed: str | None = None
        self._files: dict[str, BinaryIO] = {}
        self._run_dir = run_dir if spec.out is not None and world else None
        self.feed: Feed
        if world:
            self.feed = WorldFeed(self.seed, self.prompt, on_truth=self._write_truth if self._run_dir else None)
        else:
            self.feed = PayloadFeed(self.seed, topology.item_bytes)
        replayed = None
        if decisions is not None:
            mine = [d for d in decisions if d.session == session and d.what == LatePolicy.fewer_steps]
            replayed = {d.frame: d.value for d in mine}
        period = None if topology.deadline_ms is None else topology.deadline_ms / 1000
        self.pacer = Pacer(period, topology.on_late, topology.model.steps, replayed)

    def emit(self, position: int) -> tuple[tuple[Tensor, ...], Meta]:
        """Tensors and metadata of the next item."""
        tensors, meta = self.feed.next(position)
        index = position - self.prompt
        if index >= 0:
            emitted_s = now()
            if self.failed is None:
                self._emitted[index] = emitted_s
            first = self.pacer.emit(index, emitted_s)
            if first:
                meta["first_step"] = first
                self.decisions.append(Decision(self.id, index, LatePolicy.fewer_steps.value, first))
        return tensors, meta

    def show(self, position: int, frame: Tensor) -> None:
        """Commit one finished frame; frames come in order. Of a session that failed nothing more is shown."""
        if self.failed is not None:
            return
        index = position - self.prompt
        if index != self.shown:
            raise ValueError(f"session {self.id}: frame {index} reached the sink, {self.shown} was next")
        shown_s = now()
        self.shown += 1
        array = frame.numpy() if frame.dtype == torch.uint8 else frame.view(torch.uint8).numpy()
        data = array.tobytes()
        self._digest.update(data)
        self._shape = array.shape
        if self._run_dir is not None:
            self._file(FRAMES_FILE).write(data)
        shown = self.pacer.show(index, shown_s)
        self.late += shown.late_s > 0
        if shown.repeats:
            self.decisions.append(Decision(self.id, index, LatePolicy.repeat.value, shown.repeats))
        self.times.append(FrameTime(self.id, index, self._emitted.pop(index), shown_s, shown.due_s))

    def fail(self, why: str) -> None:
        """End what is shown. Its program runs on, unseen: actions are taken as ever, and what is decided with them is
        journaled, as the steps that a frame may skip depend on the frame before, in a replay too."""
        if self.failed is None:
            self.failed = why
            self._emitted.clear()

    def result(self) -> SessionResult:
        """What came out."""
        return SessionResult(self.id, self.shown, self._digest.hexdigest(), self.late, list(self._shape), self.failed)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _write_truth(self, frame: np.ndarray) -> None:
        if self.failed is None:
            self._file(TRUTH_FILE).write(frame.tobytes())

    def _file(self, name: str) -> BinaryIO:
        if name not in self._files:
            if self._run_dir is None:
                raise ValueError("this run keeps no frames")
            self._files[name] = open(self._run_dir / name.format(self.id), "wb")  # noqa: SIM115 (closed in close)
        return self._files[name]
