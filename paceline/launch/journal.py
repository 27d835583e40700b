"""The journal of a run, read back for a replay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from paceline.launch.errors import ArgumentError
from paceline.pipeline.context import Context
from paceline.pipeline.topology import FrameTopology, LatePolicy
from paceline.runtime.journal import JournalError, read_decisions
from paceline.runtime.result import Decision

__all__ = ["check_replay", "read_journal"]


def read_journal(path: Path) -> list[Decision]:
    """The decisions of a `journal.jsonl` that `--out` wrote. Raises `ArgumentError` naming the bad line."""
    try:
        return read_decisions(path)
    except OSError as error:
        reason = error.strerror or error
        raise ArgumentError(f"{path}: can't be read: {reason}; give the journal.jsonl of an earlier --out") from error
    except JournalError as error:
        raise ArgumentError(f"{error}; give the journal.jsonl of an earlier --out, unchanged") from error


def check_replay(path: Path, decisions: Sequence[Decision], topology: FrameTopology) -> None:
    """Raise `ArgumentError` where a decision of a journal can't be taken in this topology: a step that the model does
    not have, or that lies too far behind the one at which the frame before began."""
    spec, steps = topology.context, topology.steps
    firsts: dict[int, dict[int, int]] = {}
    for decision in decisions:
        if decision.what == LatePolicy.fewer_steps:
            firsts.setdefault(decision.session, {})[decision.frame] = decision.value
    for session, first in firsts.items():
        context = Context.of(spec, steps, spec.prompt, spec.prompt)
        for frame in sorted(first.keys() | {frame + 1 for frame in first}):
            value = first.get(frame, 0)
            try:
                context.begin(spec.prompt + frame, value)
            except ValueError as error:
                raise ArgumentError(
                    f"{path}: session {session} can't begin frame {frame} at step {value} of {steps} here; give the "
                    "journal.jsonl of a run with the same model.steps and context"
                ) from error
