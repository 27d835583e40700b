"""What speculation counts. Each part counts its own fields and leaves the others at zero, so that they can be added."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

__all__ = ["Counters"]


@dataclass(slots=True)
class Counters:
    """Counts of one session, or of several added up. Tokens unless another unit is named."""

    windows: int = 0
    """drafted windows that were judged (windows)"""
    plain: int = 0
    """plain passes (passes)"""
    judged: int = 0
    accepted: int = 0
    rejections: int = 0
    """drafted tokens that were rejected; at most one a window"""
    censored: int = 0
    """behind a rejection in the same window: forwarded, never judged"""
    from_drafts: int = 0
    """committed as drafted"""
    from_refill: int = 0
    """committed in place of a rejected draft, or after the last draft of a window"""
    from_plain: int = 0
    """committed by plain passes"""
    stale_drafted: int = 0
    """in windows that were discarded unjudged, wherever that happened"""
    stale_verified: int = 0
    """those of them that the target had forwarded"""
    late: int = 0
    """drafted tokens that came after the target had decided their position"""
    fallbacks: int = 0
    """times that patience with the drafter ran out (times)"""
    redrafts: int = 0
    """rollbacks of the drafter that started from nothing (times)"""
    hedge_hits: int = 0
    """rollbacks that found their refill ready (times)"""
    hedge_misses: int = 0
    """rollbacks that did not, although hedging was on (times)"""
    hedge_drafted: int = 0
    hedge_used: int = 0
    """drafted ahead, and of those taken over by the main chain"""
    main_drafted: int = 0
    obsolete: int = 0
    """draft steps whose branch was gone when they ended"""
    judged_at: list[int] = field(default_factory=list)
    accepted_at: list[int] = field(default_factory=list)
    """the same by index in the window"""

    def count(self, offset: int, judged: int, accepted: int) -> None:
        """Count judged tokens from index `offset` of a window on, the first `accepted` of which were accepted."""
        missing = offset + judged - len(self.judged_at)
        if missing > 0:
            self.judged_at.extend([0] * missing)
            self.accepted_at.extend([0] * missing)
        for index in range(offset, offset + judged):
            self.judged_at[index] += 1
        for index in range(offset, offset + accepted):
            self.accepted_at[index] += 1
        self.judged += judged
        self.accepted += accepted

    def add(self, other: Counters) -> None:
        """Add another's counts to these."""
        for f in fields(self):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            if isinstance(mine, list):
                mine.extend([0] * (len(theirs) - len(mine)))
                for index, value in enumerate(theirs):
                    mine[index] += value
            else:
                setattr(self, f.name, mine + theirs)

    @property
    def accepted_share(self) -> float:
        """Accepted over judged; 0 where nothing was judged."""
        return self.accepted / self.judged if self.judged else 0.0

    @property
    def acceptance_by_position(self) -> list[float]:
        """Accepted over judged by index in the window."""
        return [a / j if j else 0.0 for a, j in zip(self.accepted_at, self.judged_at, strict=True)]
