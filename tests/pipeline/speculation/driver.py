"""Drives VerifyScheduler, Acceptor and DrafterCore of one session through a random order of events.

A generator: it yields what only a model could answer (a token to draft, a window to judge) and is sent the answer, so
that a test may answer many sessions at once. What happens when is drawn by a random generator of its own that sees no
tokens. Each verifier's KV is a list of tokens, truncated and extended as a verifier would do it, and the acceptor's
rows follow from the last verifier's KV alone: a rollback that goes wrong shows in the text.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial

from paceline.pipeline.speculation.acceptor import Acceptor, Check
from paceline.pipeline.speculation.counters import Counters
from paceline.pipeline.speculation.drafter import Branch, DrafterCore
from paceline.pipeline.speculation.hedge import Alternative
from paceline.pipeline.speculation.verify_scheduler import DrafterState, VerifyScheduler
from paceline.pipeline.speculation.window import Coupling, Policy, Verdict, Window


@dataclass(frozen=True, slots=True)
class Setup:
    """One session and how it is served."""

    session: int
    prompt: tuple[int, ...]
    limit: int
    coupling: Coupling
    window: int = 2
    depth: int = 2
    hedge: int = 0
    policy: Policy = Policy.hedge
    verifiers: int = 1
    patience: float = 50.0
    chunk: int = 1 << 30
    eos: frozenset[int] = frozenset()
    faults: float = 0.0
    """chance of each event to be preceded by a fault: the drafter lost, switched off or on, its settings changed"""


@dataclass(frozen=True, slots=True)
class Draw:
    """Asks for the drafter's token behind `context`; answered by (token, alternatives)."""

    setup: Setup
    branch: Branch
    context: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """Asks for (accepted, replacement, extra); `contexts` are the tokens that each row follows."""

    setup: Setup
    check: Check
    contexts: tuple[tuple[int, ...], ...]


@dataclass(slots=True)
class Played:
    """What came of a session."""

    tokens: list[int]
    verdicts: list[Verdict]
    counters: Counters
    losses: int = 0
    max_underway: int = 0


Asked = Generator["Draw | Rule", "tuple[int, Sequence[Alternative]] | tuple[int, int | None, int | None]", Played]
MakeCore = Callable[..., DrafterCore]


class _Session:
    def __init__(self, setup: Setup, rng: random.Random, make_core: MakeCore) -> None:
        self.setup, self.rng, self.make_core = setup, rng, make_core
        self.scheduler = VerifyScheduler(
            setup.session,
            setup.prompt,
            setup.coupling,
            depth=setup.depth,
            policy=setup.policy,
            patience=setup.patience,
            chunk=setup.chunk,
        )
        self.acceptor = Acceptor(setup.session, setup.prompt, setup.limit, setup.coupling, setup.eos)
        self.core: DrafterCore | None = self.new_core(setup.prompt)
        self.counters = Counters()
        self.now = 0.0
        self.drafts: deque[Window] = deque()
        self.passes: list[deque[Window]] = [deque() for _ in range(setup.verifiers)]
        self.kv: list[list[int]] = [[] for _ in range(setup.verifiers)]
        self.carry: tuple[int, ...] | None = None
        self.to_front: deque[Verdict] = deque()
        self.to_drafter: deque[Verdict] = deque()
        self.steps: list[tuple[Branch, int, Sequence[Alternative]]] = []
        self.played = Played([], [], self.counters)

    def new_core(self, tokens: Sequence[int], forwarded: int | None = None, epoch: int = 0) -> DrafterCore:
        s = self.setup
        return self.make_core(
            s.session, tokens, s.limit, s.coupling, window=s.window, depth=s.depth, hedge=s.hedge, policy=s.policy,
            eos=s.eos, forwarded=forwarded, epoch=epoch,
        )  # fmt: skip

    def run(self) -> Asked:
        # Drafting is the shorter work: its events come twice as often. An event that is not possible now does nothing.
        drafting = [self.begin_steps, self.end_steps]
        forwarding = [partial(self.forward, stage) for stage in range(self.setup.verifiers)]
        events: list[Callable[[], Asked | None]] = [
            *drafting, *drafting, self.deliver_draft, self.give, *forwarding, self.deliver_verdict, self.tell_drafter,
        ]  # fmt: skip
        uniform, count, faults = self.rng.random, len(events), self.setup.faults
        while self.scheduler.finished is None:
            self.now += 1.0
            if faults and uniform() < faults:
                self.fault()
            asked = events[int(uniform() * count)]()
            if asked is not None:
                yield from asked
        self.counters.add(self.scheduler.counters)
        self.counters.add(self.acceptor.counters)
        if self.core is not None:
            self.counters.add(self.core.counters)
        self.played.tokens = self.acceptor.tokens
        return self.played

    # -- the drafter ---------------------------------------------------------------------------------------------------

    def begin_steps(self) -> Asked | None:
        if self.core is None or self.steps:
            return None
        branches = self.core.wants(1 if self.rng.random() < 0.6 else 3)
        return self._draw(self.core, branches) if branches else None

    def _draw(self, core: DrafterCore, branches: Sequence[Branch]) -> Asked:
        for branch in branches:
            context = tuple(core.sequence(branch))
            assert len(context) == branch.position < self.setup.limit
            token, alternatives = yield Draw(self.setup, branch, context)  # type: ignore[misc]
            self.steps.append((branch, token, alternatives))
        return self.played

    def end_steps(self) -> None:
        if not self.steps or self.core is None:
            return
        for branch, token, alternatives in self.steps:
            self.core.drafted(branch, token, alternatives)
        self.steps.clear()
        self.send()

    def send(self) -> None:
        while self.core is not None and (window := self.core.ready()) is not None:
            assert window.end <= self.setup.limit and window.drafted
            self.drafts.append(window)

    def tell_drafter(self) -> None:
        if not self.to_drafter or self.core is None:
            return
        self.core.settled(self.to_drafter.popleft())
        self.send()

    # -- the verifiers -------------------------------------------------------------------------------------------------

    def deliver_draft(self) -> None:
        if not self.drafts:
            return
        self.scheduler.offer(self.drafts.popleft())

    def give(self) -> None:
        window = self.scheduler.next(self.now)
        if window is not None:
            self.passes[0].append(window)
            self.played.max_underway = max(self.played.max_underway, self.scheduler.underway)

    def forward(self, stage: int) -> Asked | None:
        if not self.passes[stage]:
            return None
        window = self.passes[stage].popleft()
        if stage + 1 < self.setup.verifiers:
            self._compute(stage, window)
            self.passes[stage + 1].append(window)
            return None
        check = self.acceptor.plan(window)
        if check is not None:
            return self._rule(check)
        computed = self.rng.random() < 0.5 and len(self.kv[stage]) >= window.start
        if computed:
            self._compute(stage, window)
        self.to_front.append(self.acceptor.dismiss(window, computed or self.setup.verifiers > 1))
        return None

    def _compute(self, stage: int, window: Window) -> None:
        kv = self.kv[stage]
        assert len(kv) >= window.start, "a window starts behind the KV"
        kv[window.start :] = window.tokens

    def _rule(self, check: Check) -> Asked:
        window, kv = check.window, self.kv[-1]
        before = list(kv)
        assert before[: window.start] == self.acceptor.tokens[: window.start]
        self._compute(self.setup.verifiers - 1, window)
        contexts: list[tuple[int, ...]] = []
        for row in check.rows:
            if row < 0:
                assert self.carry is not None, "no carry-over row"
            contexts.append(tuple(kv[: window.start + row + 1]) if row >= 0 else (self.carry or ()))
        accepted, replacement, extra = yield Rule(self.setup, check, tuple(contexts))  # type: ignore[misc]
        # The carry-over row may reject before the pass ran.
        early = check.carry and accepted == 0 and bool(check.drafted) and self.rng.random() < 0.5
        if early:
            kv[:] = before
        rejected = accepted < len(check.drafted)
        if window.tokens or rejected:
            self.carry = None if rejected else tuple(kv)
        self.to_front.append(self.acceptor.settle(check, accepted, replacement, extra, forwarded=not early))
        return self.played

    def deliver_verdict(self) -> None:
        if not self.to_front:
            return
        verdict = self.to_front.popleft()
        self.scheduler.settled(verdict, self.now)
        self.played.verdicts.append(verdict)
        if self.core is not None:
            self.to_drafter.append(verdict)

    # -- faults --------------------------------------------------------------------------------------------------------

    def fault(self) -> None:
        if self.core is None:
            resume = self.scheduler.resume()
            if resume is not None and self.rng.random() < 0.3:
                self.core = self.new_core(resume.tokens, resume.forwarded, resume.epoch)
                self.scheduler.set_drafter(DrafterState.on)
            return
        kind = self.rng.choice(("lose", "tune", "off", "on"))
        if kind == "lose":
            self.played.losses += 1
            self.counters.add(self.core.counters)
            self.core = None
            for held in (self.drafts, self.to_drafter):
                held.clear()
            self.steps.clear()
            self.scheduler.set_drafter(DrafterState.lost)
        elif kind == "tune":
            self.core.tune(self.rng.randint(1, 4), self.rng.randint(1, 4), self.rng.randint(0, 5))
            self.scheduler.depth = self.rng.randint(1, 4)
            self.send()
        else:
            self.scheduler.set_drafter(DrafterState.off if kind == "off" else DrafterState.on)


def play(setup: Setup, rng: random.Random, make_core: MakeCore = DrafterCore) -> Asked:
    """The session's generator."""
    return _Session(setup, rng, make_core).run()
