"""What travels between a drafter and its verifiers: windows one way, verdicts the other; and the words both use.

One rule says why and where a session ends, for the acceptor, the text at the leader and the serial reference. It looks
at one committed token at a time, in order, so the end does not depend on how many tokens a verdict brings. Where
several reasons hold for the same token, the order is: end of text, stop string, length.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import StrEnum

__all__ = ["Coupling", "FinishReason", "Policy", "SpeculationError", "Verdict", "Window", "ending"]


class SpeculationError(RuntimeError):
    """A part was told something that cannot follow from what it was told before: a defect of its driver."""


class Coupling(StrEnum):
    """How a drafted token and the target's own are made to agree."""

    greedy = "greedy"
    """both take the likeliest token"""
    gumbel = "gumbel"
    """both take argmax(log p + g) with the same noise g, keyed by (seed, position)"""
    rejection = "rejection"
    """speculative sampling of Leviathan et al. 2023 and Chen et al. 2023: the highest acceptance there is"""

    @property
    def deterministic(self) -> bool:
        """Whether the target's token is a function of weights, seed and prefix alone, whatever was drafted."""
        return self is not Coupling.rejection


class Policy(StrEnum):
    """What happens after a rejection."""

    redraft = "redraft"
    """the drafter starts again behind the replacement"""
    hedge = "hedge"
    """as redraft, but a continuation drafted in time for this very replacement is used"""
    plain = "plain"
    """the verifier decodes one token by itself at once, while the drafter catches up"""


class FinishReason(StrEnum):
    """Why a session ended."""

    stop = "stop"
    length = "length"
    eos = "eos"
    cancelled = "cancelled"
    failed = "failed"
    """its KV found no room, or was lost and could not be computed again"""


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive tokens that one pass of the target forwards.

    `start` is the position of the first; everything before it is in every verifier's KV, or on its way there in
    windows sent before. `tokens[:known]` are committed but not yet forwarded, `tokens[known:]` are drafted. `bonus`
    asks for one more token from the last row if all drafts are accepted; deterministic couplings give that token
    anyway. A plain pass has no drafts and `bonus`; it may even have no tokens, and then samples from the row that the
    pass before it left. `offset` is the index of the first drafted token in the window as the drafter sent it: more
    than 0 where a late window was trimmed.
    """

    session: int
    epoch: int
    start: int
    tokens: tuple[int, ...]
    known: int
    bonus: bool = False
    offset: int = 0

    def __post_init__(self) -> None:
        if self.start < 0 or self.epoch < 0 or not 0 <= self.known <= len(self.tokens):
            raise SpeculationError(
                f"session {self.session}: a window of epoch {self.epoch} from position {self.start} with "
                f"{len(self.tokens)} token(s), {self.known} of them known, cannot be"
            )

    @property
    def end(self) -> int:
        """The position after its last token."""
        return self.start + len(self.tokens)

    @property
    def drafted(self) -> tuple[int, ...]:
        """Its drafted tokens."""
        return self.tokens[self.known :]

    def trimmed(self, start: int, known: int) -> Window:
        """The same window without the tokens before `start`, of which the first `known` are committed by now."""
        cut = start - self.start
        lost = max(0, cut + known - self.known)
        return replace(self, start=start, tokens=self.tokens[cut:], known=known, offset=self.offset + lost)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one window; each window that a `VerifyScheduler` gives has exactly one, in the same order.

    `tokens` are newly committed and `length` is the committed length with them; the first `drafted` of them are drafts,
    the others come from the target. `forwarded` is the position up to which every verifier's KV is right: the next
    window starts there. Of the window's drafted tokens `judged` were looked at and `accepted` accepted, counted from
    index `offset` of the window as it was drafted; those behind a rejection are censored, not rejected. Epochs up to
    `closed` are over. `finish` says that the session is over, and why.
    """

    session: int
    epoch: int
    window_start: int
    tokens: tuple[int, ...]
    length: int
    forwarded: int
    accepted: int
    judged: int
    rejected: bool
    closed: int
    drafted: int = 0
    offset: int = 0
    finish: FinishReason | None = None


def ending(token: int, length: int, limit: int, eos: Collection[int], stopped: bool = False) -> FinishReason | None:
    """Why a session ends with `token`, which makes it `length` tokens long, prompt included; None where it goes on.

    `limit` is its maximum length, `eos` are the tokens that end a text, and `stopped` says that a stop string is
    complete with this token.
    """
    if token in eos:
        return FinishReason.eos
    if stopped:
        return FinishReason.stop
    return FinishReason.length if length >= limit else None
