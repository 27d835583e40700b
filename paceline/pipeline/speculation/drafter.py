"""The drafter of one session: what to draft next, which windows are ready, what a verdict leaves of it. No model.

It wants one token step at a time: the main chain first, until `depth` windows of `window` tokens are in flight, then
hedges (`hedge.py`). Its driver takes branches from `wants`, extends each by one token and says so with `drafted`;
`ready` gives windows to send; `settled` takes verdicts. It may change `window`, `depth` and `hedge` at any time with
`tune`, as long as the reasons lie in what was verified and in time, never in tokens that are not verified yet.

Nothing here looks at the probability of a drafted token: to leave one out because of it would bias the output. A
window ends where it is full, or where the session has to. Behind a drafted end of text a deterministic coupling ends
it too; `rejection` must not, for a window that is sent sooner because of what is in it is also late less often, and a
verifier whose patience runs out would see the end of the text too often.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from paceline.pipeline.speculation.counters import Counters
from paceline.pipeline.speculation.hedge import Alternative, Hedge, Hedges, Outcome, likeliest
from paceline.pipeline.speculation.window import Coupling, FinishReason, Policy, SpeculationError, Verdict, Window

__all__ = ["Branch", "DrafterCore", "Rollback"]


@dataclass(frozen=True, slots=True)
class Branch:
    """What is to be extended by one token: the main chain before position `base`, then `tokens`.

    `number` is 0 for the main chain. Under `rejection` the token is drawn with the key (seed, position, epoch, draft,
    number).
    """

    session: int
    epoch: int
    number: int
    base: int
    tokens: tuple[int, ...] = ()

    @property
    def position(self) -> int:
        """The position of the token to draft."""
        return self.base + len(self.tokens)


@dataclass(frozen=True, slots=True)
class Rollback:
    """What a verdict undid: drafts from `position` on. `hedge` is the number of the branch that goes on as main chain
    (its first own token lies behind `position`), or None where drafting starts again."""

    position: int
    epoch: int
    hedge: int | None


class DrafterCore:
    """Drafts for one session. `limit` is its maximum length, prompt included; see `Resume` for a later start:
    `committed` tokens so far, `forwarded` as the scheduler says it, and the first `epoch` to use.

    `hedge` is the number of outcomes to draft ahead for; `acceptance` the chance of acceptance by index in a window,
    the last one standing for all behind it.
    """

    __slots__ = ("_acceptance", "_alternatives", "_chain", "_committed", "_end", "_hedges", "_outcomes", "_promoted",
                 "_root", "_sent", "_tail", "_waiting", "counters", "coupling", "depth", "eos", "epoch", "finished",
                 "hedge", "limit", "policy", "session", "window")  # fmt: skip

    def __init__(
        self,
        session: int,
        committed: Sequence[int],
        limit: int,
        coupling: Coupling,
        *,
        window: int,
        depth: int,
        hedge: int = 0,
        policy: Policy = Policy.hedge,
        acceptance: Sequence[float] = (0.7,),
        eos: Collection[int] = (),
        forwarded: int | None = None,
        epoch: int = 0,
    ) -> None:
        if not 0 < len(committed) < limit:
            raise SpeculationError(f"session {session}: {len(committed)} token(s) and a maximum length of {limit}")
        self.session, self.limit, self.coupling, self.policy = session, limit, coupling, policy
        self.eos = frozenset(eos)
        self.epoch = epoch
        self.finished: FinishReason | None = None
        self.counters = Counters()
        self._committed = list(committed)
        self._chain: list[int] = []
        self._alternatives: list[tuple[Alternative, ...]] = []
        self._tail = len(committed) if forwarded is None else forwarded
        # First drafted position and end of each window in flight.
        self._sent: deque[tuple[int, int]] = deque()
        self._hedges = Hedges()
        self._outcomes: list[Outcome] | None = None
        self._root = 0
        self._end: tuple[Alternative, ...] = ()
        self._promoted = 0
        # The target samples the next token by itself: nothing drafted on the main chain before that is of use.
        self._waiting = False
        self.window = self.depth = self.hedge = 0
        self._acceptance: tuple[float, ...] = (0.7,)
        self.tune(window, depth, hedge, acceptance)

    @property
    def length(self) -> int:
        """Committed tokens."""
        return len(self._committed)

    @property
    def inflight(self) -> int:
        """Windows sent that are not decided."""
        return len(self._sent)

    def tune(self, window: int, depth: int, hedge: int, acceptance: Sequence[float] | None = None) -> None:
        """Change the settings from now on; a window of 0 stops drafting. See the module's text for what they may
        depend on."""
        if window < 0 or depth < 1 or hedge < 0 or (acceptance is not None and not acceptance):
            raise SpeculationError(f"a window of {window}, a depth of {depth}, a hedge width of {hedge} cannot be")
        self.window, self.depth = window, depth
        self.hedge = hedge if self.policy is not Policy.redraft else 0
        if acceptance is not None:
            self._acceptance = tuple(acceptance)
        self._outcomes = None

    def sequence(self, branch: Branch) -> list[int]:
        """All tokens before the one that the branch wants."""
        main = self._committed[: branch.base]
        main += self._chain[: branch.base - len(self._committed)] if branch.base > len(self._committed) else []
        return main + list(branch.tokens)

    def wants(self, count: int = 1) -> list[Branch]:
        """Up to `count` different branches to extend by one token each, the most useful first."""
        if self.finished is not None or self.window == 0:
            return []
        wanted: list[Branch] = []
        if self._main_wanted:
            wanted.append(Branch(self.session, self.epoch, 0, self._main))
        if len(wanted) < count and self.hedge:
            for branch in self._hedge_branches():
                wanted.append(branch)
                if len(wanted) == count:
                    break
        return wanted

    def drafted(self, branch: Branch, token: int, alternatives: Sequence[Alternative] = ()) -> bool:
        """Take the token drafted for a branch, and what else the target may have there (for hedges; with shares that
        sum to at most 1). False if the branch is gone meanwhile."""
        fits_main = branch.epoch == self.epoch and branch.number == 0 and branch.base == self._main
        if branch.number and branch.number == self._promoted:
            # The branch became the main chain while its step was under way; the step is the main chain's next.
            fits_main = branch.position == self._main and self._main_wanted
        if fits_main and self.finished is None:
            self._chain.append(token)
            self._alternatives.append(tuple(alternatives))
            self.counters.main_drafted += 1
            return True
        if branch.epoch == self.epoch and branch.number and branch.number == self._root:
            sure = self._accepted(0)
            self._end = ((token, sure), *((other, (1.0 - sure) * share) for other, share in alternatives))
            self._outcomes = None
            self.counters.hedge_drafted += 1
            return True
        hedge = self._hedges.get(branch.number) if branch.epoch == self.epoch else None
        if hedge is None or branch.position != hedge.position + 1 + len(hedge.tokens):
            self.counters.obsolete += 1
            return False
        hedge.tokens.append(token)
        hedge.alternatives.append(tuple(alternatives))
        hedge.ended = self._ends(token)
        self.counters.hedge_drafted += 1
        return True

    def ready(self) -> Window | None:
        """The next window to send, if one is complete; it counts as sent. Ask until None comes."""
        unsent = self._main - max(self._tail, len(self._committed))
        if self.finished is not None or self._waiting or self.window == 0 or unsent <= 0:
            return None
        if len(self._sent) >= self.depth or (unsent < self.window and not self._ended):
            return None
        first = max(self._tail, len(self._committed))
        end = first + min(unsent, self.window)
        start, committed = self._tail, len(self._committed)
        tokens = (*self._committed[start:], *self._chain[max(0, start - committed) : end - committed])
        # Known before a token of it was drawn: whether another window can follow before the verdict.
        alone = not self.coupling.deterministic and self.depth == 1
        window = Window(self.session, self.epoch, start, tokens, max(0, committed - start), bonus=alone)
        self._sent.append((first, end))
        self._tail = end
        self._waiting = alone
        self._outcomes = None
        return window

    def settled(self, verdict: Verdict) -> Rollback | None:
        """Take a verdict; what it undid, if anything. Raises `SpeculationError` where one is missing before it."""
        if verdict.finish is not None:
            self.finished = verdict.finish
            self._committed += verdict.tokens
            del self._committed[verdict.length :]
            self._restart(None)
            return None
        first = len(self._committed)
        if first + len(verdict.tokens) != verdict.length:
            raise SpeculationError(
                f"session {self.session}: a verdict makes {verdict.length} tokens with {len(verdict.tokens)} new ones, "
                f"but {first} were committed before it"
            )
        over = verdict.closed >= self.epoch
        same = self._same(verdict.tokens)
        self._committed += verdict.tokens
        self._outcomes = None
        if over or same < min(len(verdict.tokens), len(self._chain)):
            # Under rejection a token was sampled: what was drafted behind it is over, whatever it holds.
            sampled = over and not self.coupling.deterministic
            position = len(self._committed) - 1 if sampled or not verdict.tokens else first + same
            return self._roll_back(verdict, position)
        return self._go_on(verdict, len(verdict.tokens))

    # -- the main chain ------------------------------------------------------------------------------------------------

    @property
    def _main(self) -> int:
        """The position behind the main chain."""
        return len(self._committed) + len(self._chain)

    @property
    def _ended(self) -> bool:
        """Whether nothing can follow the main chain."""
        return self._main >= self.limit or (bool(self._chain) and self._ends(self._chain[-1]))

    def _ends(self, token: int) -> bool:
        return self.coupling.deterministic and token in self.eos

    @property
    def _main_wanted(self) -> bool:
        unsent = self._main - max(self._tail, len(self._committed))
        free = len(self._sent) < self.depth and unsent < self.window
        return free and not self._waiting and not self._ended and self.window > 0

    def _accepted(self, index: int) -> float:
        return self._acceptance[min(index, len(self._acceptance) - 1)]

    def _same(self, tokens: Sequence[int]) -> int:
        """How many of the tokens are what the main chain has at their positions."""
        for index, (mine, theirs) in enumerate(zip(self._chain, tokens, strict=False)):
            if mine != theirs:
                return index
        return min(len(self._chain), len(tokens))

    def _go_on(self, verdict: Verdict, count: int) -> Rollback | None:
        exhausted = count > len(self._chain)
        del self._chain[:count], self._alternatives[:count]
        while self._sent and self._sent[0][1] <= verdict.forwarded:
            self._sent.popleft()
        self._tail = max(self._tail, verdict.forwarded)
        if not exhausted:
            self._hedges.forget_before(len(self._committed))
            return None
        # The target was ahead of the chain, by its own token behind the last window or by plain passes.
        position = len(self._committed) - 1
        hedge = self._take(position)
        self._restart(hedge)
        return Rollback(position, self.epoch, hedge.number) if hedge else None

    def _roll_back(self, verdict: Verdict, position: int) -> Rollback:
        hedge = self._take(position) if position == len(self._committed) - 1 else None
        self.epoch = max(self.epoch, verdict.closed) + 1
        self._tail = verdict.forwarded
        self._restart(hedge)
        plain = verdict.rejected and self.policy is Policy.plain and not self.coupling.deterministic
        self._waiting = plain
        return Rollback(position, self.epoch, hedge.number if hedge else None)

    def _restart(self, hedge: Hedge | None) -> None:
        """The main chain becomes the hedge's tokens, or empty."""
        self._chain = hedge.tokens if hedge else []
        self._alternatives = hedge.alternatives if hedge else []
        self._promoted = hedge.number if hedge else 0
        self._hedges.clear()
        self._sent.clear()
        self._root, self._end = 0, ()
        self._waiting = False
        self._outcomes = None

    def _take(self, position: int) -> Hedge | None:
        """The hedge for the token committed at `position`, counted as hit or miss."""
        hedge = self._hedges.find(position, self._committed[position])
        if hedge is not None and hedge.tokens:
            self.counters.hedge_hits += 1
            self.counters.hedge_used += len(hedge.tokens)
            return hedge
        self.counters.hedge_misses += self.hedge > 0
        self.counters.redrafts += 1
        return None

    # -- hedges --------------------------------------------------------------------------------------------------------

    def _hedge_branches(self) -> Iterator[Branch]:
        if self._root_wanted:
            self._root = self._root or self._hedges.new_number()
            yield Branch(self.session, self.epoch, self._root, self._main)
        if self._outcomes is None:
            self._outcomes = likeliest(self._in_flight(), (self._main, self._end) if self._end else None, self.hedge)
        for outcome in self._outcomes:
            hedge = self._hedges.ensure(outcome)
            room = hedge.position + 1 + len(hedge.tokens) < self.limit and outcome.token not in self.eos
            if room and not hedge.ended and len(hedge.tokens) < self.window:
                tokens = (hedge.token, *hedge.tokens)
                yield Branch(self.session, self.epoch, hedge.number, hedge.position, tokens)

    @property
    def _root_wanted(self) -> bool:
        """Whether the token behind the main chain is the target's own to decide: what it may be is worth a step."""
        alone = self._waiting or (self.depth == 1 and bool(self._sent) and self._main == self._tail)
        return alone and not self._end and not self._ended

    def _in_flight(self) -> Iterator[tuple[int, float, Sequence[Alternative]]]:
        committed = len(self._committed)
        for first, end in self._sent:
            for position in range(max(first, committed), end):
                yield position, self._accepted(position - first), self._alternatives[position - committed]
