"""A session on the rank of its source: what it counts, and what it stops counting when it has failed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from paceline.pipeline.program import Unit, UnitKind
from paceline.runtime.result import Decision, FrameTime
from paceline.runtime.session import Session, SinkStage
from paceline.runtime.spec import RunSpec
from paceline.runtime.spool import read_spool
from paceline.stages.item import Item, Key, Meta
from tests.launch.synthetic import PROMPT, chain_spec


def no_decision(decision: Decision) -> None:
    raise AssertionError(f"nothing here decides: {decision}")


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    spec = chain_spec(2, frames=6, deadline_ms=1)
    made = Session(RunSpec(spec.topology, 6, 1, 7, out=tmp_path), 0, tmp_path, None, no_decision)
    yield made
    made.close()


def sink(session: Session, frame: int, meta: Meta) -> None:
    """A frame reaches the sink."""
    pixels = torch.full((1, 32, 32, 3), frame, dtype=torch.uint8)
    unit = Unit("sink", 0, UnitKind.show, 0, PROMPT + frame)
    SinkStage({0: session}, lambda: None).run([unit], [[Item(Key(0, 0, PROMPT + frame), (pixels,), meta)]])


def test_nothing_is_shown_from_the_first_mark_on(session: Session, tmp_path: Path) -> None:
    for position in range(PROMPT + 4):
        session.emit(position)
    sink(session, 0, {"action": 1})
    sink(session, 1, {})
    before = session.result()
    sink(session, 2, {"failed": "stage late: no room"})
    sink(session, 3, {"failed": "stage early: another reason"})
    late = session.late
    for position in range(PROMPT + 4, PROMPT + 6):
        session.emit(position)
    # A frame without a mark behind one with it is not shown either.
    sink(session, 4, {})
    session.close()
    result = session.result()
    assert result.failed == "stage late: no room"
    assert (result.frames, result.outputs_sha256, result.late) == (2, before.outputs_sha256, before.late)
    assert before.failed is None
    assert [time.frame for time in read_spool(tmp_path / "times-0.spool", FrameTime)] == [0, 1]
    assert session.late == late
    assert np.load(tmp_path / "session-0.npy.part").shape == (2, 32, 32, 3)
    assert np.load(tmp_path / "truth-0.npy.part").shape == (4, 32, 32, 3)
    assert session._emitted == {}, "actions of frames that will not be shown pile up"


def test_actions_are_paced_as_ever_after_a_failure(session: Session) -> None:
    for position in range(PROMPT + 1):
        session.emit(position)
    times = [session.pacer.emit_at(index) for index in range(1, 6)]
    sink(session, 0, {"failed": "x"})
    assert [session.pacer.emit_at(index) for index in range(1, 6)] == times
