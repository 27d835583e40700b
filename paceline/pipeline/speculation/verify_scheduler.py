"""The scheduler of one session, at the leader: which window is forwarded next. It also decodes plainly when the drafter
is off, lost or silent; that decision looks at the time and at nothing that was drafted.

Windows that came late are of use to a deterministic coupling: what the target has decided meanwhile is compared, equal
tokens are cut off, a different one discards the window and closes its epoch. Under `rejection` a plain pass samples,
and that closes the epoch whatever its windows hold: to look at them first would bias the output.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from paceline.pipeline.speculation.counters import Counters
from paceline.pipeline.speculation.window import Coupling, FinishReason, Policy, SpeculationError, Verdict, Window

__all__ = ["DrafterState", "Resume", "VerifyScheduler"]


class DrafterState(StrEnum):
    """What the scheduler knows of its drafter."""

    on = "on"
    silent = "silent"
    """it let `patience` pass; a window of its own takes that back"""
    off = "off"
    """switched off by the controller"""
    lost = "lost"


@dataclass(frozen=True, slots=True)
class Resume:
    """What a new drafter of a session begins with: see `DrafterCore`."""

    tokens: tuple[int, ...]
    forwarded: int
    epoch: int


@dataclass(slots=True)
class _Pass:
    window: Window
    stale: bool = False


class VerifyScheduler:
    """Gives the windows of one session to forward, in order; at most `depth` valid ones are under way at a time.

    `patience` is how long (in the driver's unit of time) an idle verifier waits for its drafter before it decodes
    plainly. `chunk` bounds the tokens of one prompt pass. `committed` may begin with more than the prompt, and the
    first `forwarded` of it are in the KV already.
    """

    __slots__ = ("_begin", "_closed", "_idle_since", "_line", "_once", "_passes", "_queue", "_seen", "_tail", "_tokens",
                 "chunk", "counters", "coupling", "depth", "drafter", "finished", "patience", "policy",
                 "session")  # fmt: skip

    def __init__(
        self,
        session: int,
        committed: Sequence[int],
        coupling: Coupling,
        *,
        depth: int = 2,
        policy: Policy = Policy.hedge,
        patience: float = float("inf"),
        chunk: int = 1 << 30,
        drafter: DrafterState = DrafterState.on,
        now: float = 0.0,
        forwarded: int = 0,
    ) -> None:
        if not committed or depth < 1 or chunk < 1:
            raise SpeculationError(f"session {session}: no token to begin with, or a depth or chunk below 1")
        if not 0 <= forwarded < len(committed):
            raise SpeculationError(f"session {session}: {forwarded} of {len(committed)} tokens forwarded; one is left")
        self.session, self.coupling, self.policy = session, coupling, policy
        self.depth, self.patience, self.chunk = depth, patience, chunk
        self.drafter = drafter
        self.finished: FinishReason | None = None
        self.counters = Counters()
        self._begin = len(committed)
        self._tokens = len(committed)
        # Committed tokens, and behind them those that were given and are not decided yet.
        self._line = list(committed)
        self._tail = forwarded
        self._queue: deque[Window] = deque()
        self._passes: deque[_Pass] = deque()
        self._closed = -1
        self._seen = 0
        self._once = False
        self._idle_since = now

    @property
    def underway(self) -> int:
        """Windows given that are valid and have no verdict yet."""
        return sum(not p.stale for p in self._passes)

    @property
    def drained(self) -> bool:
        """Whether every window that was given has its verdict."""
        return not self._passes

    def offer(self, window: Window) -> None:
        """Take a window of the drafter."""
        if self.drafter is DrafterState.silent:
            self.drafter = DrafterState.on
        self._seen = max(self._seen, window.epoch)
        self._queue.append(window)
        self._purge()

    def set_drafter(self, state: DrafterState) -> None:
        """Say that the drafter was switched on or off, or is lost. What a lost one sent and was not given yet is
        discarded; a new one begins from `resume`."""
        if state is DrafterState.lost and self.drafter is not DrafterState.lost:
            self._closed = max(self._closed, self._seen)
            self._purge()
        self.drafter = state

    def resume(self) -> Resume | None:
        """What a new drafter begins with; None while windows of the old one are under way (ask again then)."""
        if self.underway or self.finished is not None:
            return None
        return Resume(
            tuple(self._line[: self._tokens]), max(self._tail, self._begin if self._prefill else 0), self._epoch
        )

    def next(self, now: float) -> Window | None:
        """The next window to forward, or None if there is nothing to do yet. It counts as given."""
        if self.finished is not None or self.underway >= self.depth or self._sampling:
            return None
        if self._prefill:
            return self._give(self._chunk())
        while self._queue:
            window = self._queue.popleft()
            fitted = self._fit(window)
            if fitted is not None:
                return self._give(fitted)
        if self.underway:
            return None
        if not self._plain_due(now):
            return None
        self._once = False
        known = self._line[self._tail : self._tokens]
        return self._give(Window(self.session, self._epoch, self._tail, tuple(known), len(known), bonus=True))

    def due(self) -> float | None:
        """When patience with the drafter runs out, if nothing comes before that; None where nothing is waited for."""
        waiting = self.finished is None and not self.underway and not self._prefill and not self._queue
        return self._idle_since + self.patience if waiting else None

    def settled(self, verdict: Verdict, now: float) -> None:
        """Take the verdict on the oldest window under way. Raises `SpeculationError` where it is another's."""
        if verdict.finish is not None:
            self._finish(verdict)
            return
        if not self._passes:
            raise SpeculationError(f"session {self.session}: a verdict came, but no window is under way")
        done = self._passes.popleft()
        if (verdict.epoch, verdict.window_start) != (done.window.epoch, done.window.start):
            raise SpeculationError(
                f"session {self.session}: a verdict on the window of epoch {verdict.epoch} from {verdict.window_start} "
                f"came, but the oldest under way is that of epoch {done.window.epoch} from {done.window.start}"
            )
        self._idle_since = now
        self._closed = max(self._closed, verdict.closed)
        differs = self._commit(verdict)
        if not done.stale and (differs or verdict.closed >= done.window.epoch):
            self._roll_back(verdict)
        self._purge()

    # ------------------------------------------------------------------------------------------------------------------

    @property
    def _epoch(self) -> int:
        """The epoch of a pass of its own: one that nobody has closed, and no older than any seen."""
        return max(self._closed + 1, self._seen)

    @property
    def _prefill(self) -> bool:
        return self._tail < self._begin

    @property
    def _sampling(self) -> bool:
        """Whether a token is being sampled that closes its epoch: nothing is worth forwarding until it is there."""
        if self.coupling.deterministic:
            return False
        return any(p.window.bonus and not p.stale for p in self._passes)

    def _plain_due(self, now: float) -> bool:
        if self.drafter is not DrafterState.on or self._once:
            return True
        if now - self._idle_since < self.patience:
            return False
        self.drafter = DrafterState.silent
        self.counters.fallbacks += 1
        return True

    def _chunk(self) -> Window:
        tokens = tuple(self._line[self._tail : min(self._tail + self.chunk, self._begin)])
        last = self._tail + len(tokens) == self._begin
        # Without a drafter the prompt's last row gives the first token; with one it waits for the first draft.
        sample = last and self.drafter is not DrafterState.on
        return Window(self.session, self._epoch, self._tail, tokens, len(tokens), bonus=sample)

    def _give(self, window: Window) -> Window:
        self._passes.append(_Pass(window))
        self._line[window.start : window.end] = window.tokens
        self._tail = window.end
        return window

    def _fit(self, window: Window) -> Window | None:
        """The window as it can be forwarded behind what was given; None if nothing of it is of use."""
        if window.start > self._tail:
            raise SpeculationError(
                f"session {self.session}: a window of epoch {window.epoch} starts at {window.start}, but what was "
                f"given ends at {self._tail}"
            )
        decided = self._line[window.start : window.end]
        differs = decided != list(window.tokens[: len(decided)])
        late = window.start < self._tail or len(decided) > window.known
        if late and not self.coupling.deterministic:
            raise SpeculationError(
                f"session {self.session}: a window of epoch {window.epoch} from {window.start} came after its first "
                "position was decided, and its epoch was not closed"
            )
        if differs:
            self.counters.stale_drafted += len(window.drafted)
            self._closed = max(self._closed, window.epoch)
            self._purge()
            return None
        if window.end <= self._tail:
            self.counters.late += len(window.drafted)
            return None
        fitted = window.trimmed(self._tail, max(0, min(self._tokens, window.end) - self._tail))
        self.counters.late += len(window.drafted) - len(fitted.drafted)
        return fitted

    def _commit(self, verdict: Verdict) -> bool:
        """Write down committed tokens; whether one differs from what was given at its position."""
        first = self._tokens
        self._tokens += len(verdict.tokens)
        if self._tokens != verdict.length:
            raise SpeculationError(
                f"session {self.session}: a verdict makes {verdict.length} tokens, but {self._tokens} were counted"
            )
        given = self._line[first : self._tokens]
        differs = given != list(verdict.tokens[: len(given)])
        self._line[first : self._tokens] = verdict.tokens
        return differs

    def _roll_back(self, verdict: Verdict) -> None:
        del self._line[self._tokens :]
        self._tail = verdict.forwarded
        for p in self._passes:
            p.stale = True
            self._closed = max(self._closed, p.window.epoch)
        self._once = self.policy is Policy.plain

    def _purge(self) -> None:
        kept = [w for w in self._queue if w.epoch > self._closed and w.epoch >= self._seen and self.finished is None]
        if len(kept) != len(self._queue):
            self.counters.stale_drafted += sum(len(w.drafted) for w in self._queue) - sum(len(w.drafted) for w in kept)
            self._queue = deque(kept)

    def _finish(self, verdict: Verdict) -> None:
        """The session is over; what is under way has no verdict that anybody needs."""
        self.finished = verdict.finish
        if verdict.tokens:
            self._commit(verdict)
        del self._line[verdict.length :]
        self._tokens = verdict.length
        self._queue, queue = deque(), self._queue
        self.counters.stale_drafted += sum(len(w.drafted) for w in queue)
        self._passes.clear()
