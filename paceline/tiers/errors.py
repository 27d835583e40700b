"""What can go wrong in the memory tiers, by name: each error says what to do about it."""

from __future__ import annotations

__all__ = ["BlockLost", "StoreError", "TierError", "TierFull"]


class TierError(RuntimeError):
    """Anything that the tiers report."""


class TierFull(TierError):
    """No tier has room for another block. Whoever asked for it has to end; blocks that are held stay as they are."""


class StoreError(TierError):
    """The file of the nvme tier can't be read or written, or is not ours."""


class BlockLost(TierError):
    """A block can't be read back intact. Its session truncates to `start` and computes again from there, or ends."""

    def __init__(self, block: int, session: int, layer: int, start: int, cause: str) -> None:
        super().__init__(
            f"KV block {block} (session {session}, layer {layer}, positions from {start} on) is lost: {cause}; "
            f"truncate the session to {start} and compute it again from there"
        )
        self.block, self.session, self.layer, self.start, self.cause = block, session, layer, start, cause
