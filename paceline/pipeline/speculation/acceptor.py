"""The acceptor of one session, at the last verifier: which rows decide what, and what is committed. No probabilities.

Its driver asks `plan` before (or after) a window's last layers. A `Check` says which rows decide which drafted tokens;
the couplings look at the rows, and `settle` turns what they found into a verdict. `None` means that the window decides
nothing any more: its pass can be skipped, and `dismiss` gives its verdict.

Deterministic couplings commit eagerly: after a fully accepted window the last row's own token is committed at once. A
window in flight whose first token is that token stays valid; for another the rejection is seen one pass earlier. Under
`rejection` the last row is kept instead (by the driver: the *carry-over row*) and decides the first drafted token of
the next window; that can be done before the next window's pass, which a rejection then makes unnecessary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from paceline.pipeline.speculation.counters import Counters
from paceline.pipeline.speculation.window import Coupling, FinishReason, SpeculationError, Verdict, Window, ending

__all__ = ["Acceptor", "Check"]


@dataclass(frozen=True, slots=True)
class Check:
    """What a window's rows have to decide.

    Row i of a window is that of its token i and predicts position start + i + 1; row -1 is the carry-over row. Drafted
    token k of `drafted` is decided by row `known - 1 + k`. If all are accepted and `extra` is set, one more token is
    taken from row `known - 1 + len(drafted)`; for a plain pass that is all there is.
    """

    window: Window
    known: int
    """tokens of the window that are committed by now"""
    drafted: tuple[int, ...]
    """those that are yet to be judged; cut at the session's maximum length"""
    extra: bool

    @property
    def position(self) -> int:
        """The position of the first drafted token, or of the extra token where there is none."""
        return self.window.start + self.known

    @property
    def plain(self) -> bool:
        """Whether the extra token is that of a plain pass; the purpose of its draw follows from it."""
        return not self.window.drafted

    @property
    def carry(self) -> bool:
        """Whether the carry-over row takes part."""
        return self.known == 0 and (bool(self.drafted) or self.extra)

    @property
    def rows(self) -> range:
        """The rows that take part, as indices into the window's rows; -1 is the carry-over row."""
        return range(self.known - 1, self.known - 1 + len(self.drafted) + self.extra)


class Acceptor:
    """Owns the committed tokens of a session. `limit` is its maximum length in tokens, prompt included.

    `committed` may begin with more than the prompt: a session that is replayed begins with all that was committed, and
    one that was parked with the KV of its first `forwarded` positions.
    """

    __slots__ = ("closed", "counters", "coupling", "eos", "epoch", "finished", "forwarded",
                 "limit", "session", "tokens")  # fmt: skip

    def __init__(
        self,
        session: int,
        committed: Sequence[int],
        limit: int,
        coupling: Coupling,
        eos: Collection[int] = (),
        forwarded: int = 0,
    ) -> None:
        if not 0 < len(committed) < limit:
            raise SpeculationError(
                f"session {session}: {len(committed)} token(s) to begin with and a maximum length of {limit}; there "
                "has to be at least one token, and room for one more"
            )
        self.session = session
        self.tokens = list(committed)
        self.limit = limit
        self.coupling = coupling
        self.eos = frozenset(eos)
        self.epoch = 0
        self.closed = -1
        self.forwarded = forwarded
        """position up to which the KV holds committed tokens"""
        self.finished: FinishReason | None = None
        self.counters = Counters()

    def plan(self, window: Window) -> Check | None:
        """What the window's rows have to decide, or None if it decides nothing any more: then `dismiss` it.

        Raises `SpeculationError` where the window does not follow the one before it.
        """
        if self.finished is not None or window.epoch <= self.closed:
            return None
        if window.epoch > self.epoch:
            self.epoch = window.epoch
            self.closed = window.epoch - 1
        if window.start != self.forwarded:
            raise SpeculationError(
                f"session {self.session}: a window of epoch {window.epoch} starts at {window.start}, but the KV "
                f"ends at {self.forwarded}"
            )
        overlap, differs = self._compare(window)
        if differs is not None:
            return None
        drafted = window.tokens[overlap : max(overlap, self.limit - window.start)]
        after = window.start + overlap + len(drafted)
        wanted = self.coupling.deterministic or window.bonus
        extra = wanted and len(self.tokens) <= after < self.limit
        return Check(window, overlap, drafted, extra)

    def settle(
        self, check: Check, accepted: int, replacement: int | None, extra: int | None, forwarded: bool = True
    ) -> Verdict:
        """Commit what the rows decided: the first `accepted` of `check.drafted`, then either the `replacement` of the
        next, or, if all were accepted, the `extra` token that the check asked for.

        `forwarded` is False where the first token was rejected by the carry-over row and the pass never ran. Raises
        `SpeculationError` where the outcome does not fit the check.
        """
        window = check.window
        rejected = accepted < len(check.drafted)
        if not 0 <= accepted <= len(check.drafted) or rejected != (replacement is not None):
            raise SpeculationError(
                f"session {self.session}: {accepted} of {len(check.drafted)} accepted, replacement {replacement}"
            )
        if (extra is not None) != (check.extra and not rejected):
            raise SpeculationError(
                f"session {self.session}: an extra token of {extra} was not what the check asked for"
            )
        self._expect_open(window)
        compared = check.known - window.known if window.drafted else 0
        judged = compared + accepted + rejected
        self.forwarded = window.start + check.known + accepted
        new = list(check.drafted[:accepted])
        new += [token for token in (replacement, extra) if token is not None]
        kept = self._kept(new)
        self._count(check, judged, compared + accepted, min(accepted, len(kept)), len(kept))
        if rejected:
            behind = len(window.drafted) - judged
            self.counters.censored += behind if forwarded else 0
            self.counters.stale_drafted += 0 if forwarded else behind
        self.tokens += kept
        sampled = extra is not None and not self.coupling.deterministic
        if rejected or sampled or self.finished is not None:
            self.closed = max(self.closed, window.epoch)
        return self._verdict(
            window, tuple(kept), compared + accepted, judged, rejected, drafted=min(accepted, len(kept))
        )

    def dismiss(self, window: Window, forwarded: bool = False) -> Verdict:
        """The verdict on a window that `plan` gave None for. `forwarded` says whether the target's pass (or a part
        of it) had run."""
        judged = accepted = 0
        if self.finished is None and window.epoch > self.closed:
            _, differs = self._compare(window)
            if differs is None:
                raise SpeculationError(f"session {self.session}: the window from {window.start} is to be judged")
            # An eagerly committed token has judged the window's first: rejected, one pass early.
            accepted, judged = differs - window.known, differs - window.known + 1
            self.closed = window.epoch
            self.counters.windows += 1
            self.counters.rejections += 1
            self.counters.count(window.offset, judged, accepted)
        stale = len(window.drafted) - judged
        self.counters.stale_drafted += stale
        self.counters.stale_verified += stale if forwarded else 0
        return self._verdict(window, (), accepted, judged, judged > accepted, drafted=0)

    def finish(self, reason: FinishReason, length: int | None = None) -> Verdict:
        """End the session from outside (a stop string, a cancellation); `length` truncates what was committed."""
        if length is not None:
            if not 0 < length <= len(self.tokens):
                raise SpeculationError(f"session {self.session}: cannot end at {length} of {len(self.tokens)} tokens")
            del self.tokens[length:]
            self.forwarded = min(self.forwarded, length)
        self.finished = self.finished or reason
        self.closed = max(self.closed, self.epoch)
        return self._verdict(Window(self.session, self.epoch, self.forwarded, (), 0), (), 0, 0, False, drafted=0)

    # ------------------------------------------------------------------------------------------------------------------

    def _compare(self, window: Window) -> tuple[int, int | None]:
        """How many of the window's tokens are committed by now, and the index of the first that differs."""
        committed = self.tokens[window.start : window.end]
        if len(committed) < window.known:
            raise SpeculationError(
                f"session {self.session}: a window from {window.start} knows {window.known} token(s), but "
                f"{len(self.tokens)} are committed"
            )
        for index, (mine, theirs) in enumerate(zip(committed, window.tokens, strict=False)):
            if mine != theirs:
                if index < window.known:
                    raise SpeculationError(
                        f"session {self.session}: token {theirs} at position {window.start + index} was said to be "
                        f"known, but {mine} is committed"
                    )
                return len(committed), index
        if len(committed) > window.known and not self.coupling.deterministic and window.drafted:
            raise SpeculationError(
                f"session {self.session}: position {window.start + window.known} was sampled while a draft for it "
                "was in flight, and its epoch was not closed"
            )
        return len(committed), None

    def _expect_open(self, window: Window) -> None:
        if self.finished is not None or window.epoch <= self.closed or window.start != self.forwarded:
            raise SpeculationError(
                f"session {self.session}: the window of epoch {window.epoch} from {window.start} was settled after "
                "another one; plan and settle one window at a time"
            )

    def _kept(self, new: list[int]) -> list[int]:
        """The new tokens up to the end of the session, which is noted."""
        for index, token in enumerate(new):
            self.finished = ending(token, len(self.tokens) + index + 1, self.limit, self.eos)
            if self.finished is not None:
                return new[: index + 1]
        return new

    def _count(self, check: Check, judged: int, accepted: int, drafts: int, kept: int) -> None:
        counters = self.counters
        if check.window.drafted:
            counters.windows += 1
            counters.count(check.window.offset, judged, accepted)
            counters.rejections += judged - accepted
            counters.from_drafts += drafts
            counters.from_refill += kept - drafts
        else:
            counters.plain += check.extra
            counters.from_plain += kept

    def _verdict(
        self, window: Window, tokens: tuple[int, ...], accepted: int, judged: int, rejected: bool, drafted: int
    ) -> Verdict:
        return Verdict(
            session=self.session,
            epoch=window.epoch,
            window_start=window.start,
            tokens=tokens,
            length=len(self.tokens),
            forwarded=self.forwarded,
            accepted=accepted,
            judged=judged,
            rejected=rejected,
            closed=self.closed,
            drafted=drafted,
            offset=window.offset,
            finish=self.finished,
        )
