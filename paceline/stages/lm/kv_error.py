"""What goes wrong with the KV of one sequence while others are fine."""

from __future__ import annotations

from paceline.stages.lm.sequence_kv import KV

__all__ = ["KVError", "SequenceError"]


class KVError(RuntimeError):
    """Raised inside a pass: the KV of a sequence can't be read from `start` on, or (None) finds no room. Its cause says
    why."""

    def __init__(self, kv: KV, start: int | None) -> None:
        super().__init__(f"KV from position {start} on is lost" if start is not None else "no room for KV")
        self.kv, self.start = kv, start


class SequenceError(RuntimeError):
    """A sequence can't go on; it is to be closed. All others are as they were before the forward, or can be truncated
    to that and forwarded again."""

    def __init__(self, sequence: int, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.sequence = sequence
