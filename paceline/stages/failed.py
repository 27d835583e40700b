"""The mark of a session that failed: it travels with what the session's stages give, to the sink.

A stage that lost KV of a session goes on in the session's program, with zeros in place of what is gone. So no schedule,
no credit and no batch is another one than it would have been, and other sessions don't notice. Nothing that was
computed from the zeros is ever shown:

- What a stage gives depends on nothing but what it took and what it computed before. It reads zeros only after its
  session was found to have failed there, and from then on everything that it gives for the session is marked, latents
  and KV alike, for good.
- A stage looks for the mark on all items of a unit before it computes anything of that unit. From the first marked item
  on, all that it gives for the session is marked, too.
- Decoders and sleepers hand the metadata of an item on. The sink shows nothing of a session from the first mark on.
- The decoder itself marks a frame that holds NaN or infinity: no other stage need look for them, as they spread.

So, in the order in which items are made, none without a mark has a zero behind it. This asks nothing of the level at
which a pass reads, of how old the frames are that it recalls, of how many steps or sessions go as rows of one forward,
of where sessions begin, or of the runs of layers in which KV travels: what is not a stage's own comes as an item. It
holds for every context mode and every schedule.
"""

from __future__ import annotations

from paceline.stages.finite import NotFinite
from paceline.stages.item import Meta
from paceline.tiers.errors import BlockLost, TierError

__all__ = ["failure_in", "failure_text", "with_failure"]

_KEY = "failed"
_LONGEST = 500
"""Letters of a mark: it travels with every item."""


def failure_in(meta: Meta) -> str | None:
    """The mark that an item's metadata carry, if any: a text for the user."""
    text = meta.get(_KEY)
    return None if text is None else str(text)


def with_failure(meta: Meta, failure: str | None) -> Meta:
    """Metadata with the mark, as a copy; without a failure they stay as they are."""
    return meta if failure is None else {**meta, _KEY: failure}


def failure_text(stage: str, rank: int | None, frame: int, prompt: int, cause: TierError | NotFinite) -> str:
    """What the mark says: where a session failed, computing which frame, and why. Positions `frame` and those in the
    cause count the `prompt` frames; the text counts generated frames, as all that users see does."""
    where = f"stage {stage}" if rank is None else f"stage {stage} on rank {rank}"
    why = str(cause)
    if isinstance(cause, BlockLost):
        why = f"KV of {_named(cause.start, prompt)}, layer {cause.layer}, is lost: {cause.cause}"
    text = f"{where}, at {_named(frame, prompt)}: {why}"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _named(position: int, prompt: int) -> str:
    return f"frame {position - prompt}" if position >= prompt else f"prompt frame {position}"
