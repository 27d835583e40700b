"""The law of `rejection`: whatever the order of events, the text is distributed as the target has it.

Target and drafter are second-order Markov chains over five tokens. Thousands of sessions run through the real
VerifyScheduler, Acceptor, DrafterCore and couplings, each in a random order of events of its own: windows that are
late or stale, hedges that hit and miss, plain passes, drafters that are lost, come back, are switched off or get
other settings. Token 0 ends a session. The text is cut into blocks of two tokens that do not overlap; given the two
tokens before it, a block's law is exact and blocks are independent, so the counts are compared by a chi-square test.

Significance: 1e-6 for each test of the law; a biased variant has to fail at 1e-6 too, with as many samples or fewer.
"""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

import paceline.stages.couplings as couplings
from paceline.kernels.gumbel import DrawKey, uniforms
from paceline.kernels.philox import Purpose
from paceline.pipeline.speculation.counters import Counters
from paceline.pipeline.speculation.drafter import DrafterCore
from paceline.pipeline.speculation.window import Coupling, Policy, Window
from paceline.stages.couplings import Judgement, alternatives, draw, judge_rows
from tests.pipeline.speculation.driver import Asked, Draw, MakeCore, Played, Rule, Setup, play

_V = 5
_END = 0
_PROMPT = (1, 2)
_BLOCK = 2
_SIGNIFICANCE = 1e-6


def _chain(seed: int, sharpness: float) -> Tensor:
    """Log-probabilities `[V * V, V]`, by the token before last and the last; the end is rare."""
    logits = torch.randn(_V * _V, _V, generator=torch.Generator().manual_seed(seed)) * sharpness
    logits[:, _END] = -2.5
    return logits.log_softmax(-1)


TARGET = _chain(1, 1.0)
# Like the target, but not quite: about 0.75 is accepted.
DRAFTER = (0.7 * TARGET + 0.5 * _chain(2, 1.0)).log_softmax(-1)

_CHANCES: list[list[float]] = DRAFTER.double().exp().tolist()


def _state(context: Sequence[int]) -> int:
    return context[-2] * _V + context[-1]


@dataclass(frozen=True)
class Answerer:
    """Answers the requests of many sessions with a few calls of the couplings."""

    draw: Callable[..., couplings.Drawn] = draw

    def draws(self, asked: Sequence[Draw]) -> list[tuple[int, tuple[tuple[int, float], ...]]]:
        rows = DRAFTER[[_state(d.context) for d in asked]]
        keys = [DrawKey(d.setup.session, d.branch.position, d.branch.epoch, d.branch.number) for d in asked]
        drawn = self.draw(Coupling.rejection, rows, keys)
        others = alternatives(Coupling.rejection, rows, keys, drawn.tokens, 2)
        return list(zip(drawn.tokens, others, strict=True))

    def rulings(self, asked: Sequence[Rule]) -> list[tuple[int, int | None, int | None]]:
        judgements = []
        for rule in asked:
            states = [_state(context) for context in rule.contexts]
            drafted = rule.check.drafted
            chances = [_CHANCES[state][token] for state, token in zip(states, drafted, strict=False)]

            def row(index: int, states: list[int] = states) -> Tensor:
                return DRAFTER[states[index]]

            judgements.append(Judgement(rule.check, TARGET[states], rule.setup.session, chances, row))
        return [(r.accepted, r.replacement, r.extra) for r in judge_rows(Coupling.rejection, judgements)]


def _setup(session: int, rng: random.Random, limit: int) -> Setup:
    return Setup(
        session=session,
        prompt=_PROMPT,
        limit=limit,
        coupling=Coupling.rejection,
        window=rng.randint(1, 3),
        depth=rng.randint(1, 3),
        hedge=rng.choice((0, 2, 4)),
        policy=rng.choice(list(Policy)),
        verifiers=rng.randint(1, 3),
        patience=rng.choice((20.0, 60.0, 150.0, 1000.0, 1000.0)),
        eos=frozenset({_END}),
        faults=rng.choice((0.0, 0.0, 0.01)),
    )


def run(setups: Sequence[Setup], answerer: Answerer, make_core: MakeCore = DrafterCore) -> list[Played]:
    """Plays all sessions side by side; requests of one kind are answered together."""
    played: list[Played] = []
    # Not more than this many at once, and no garbage collector that walks over them again and again.
    for first in range(0, len(setups), 2_000):
        gc.disable()
        try:
            played += _side_by_side(setups[first : first + 2_000], answerer, make_core)
        finally:
            gc.enable()
    return played


def _side_by_side(setups: Sequence[Setup], answerer: Answerer, make_core: MakeCore) -> list[Played]:
    played: list[Played] = []
    running: list[tuple[Asked, Draw | Rule]] = []

    def go_on(asked: Asked, answer: object) -> None:
        try:
            running.append((asked, asked.send(answer)))  # type: ignore[arg-type]
        except StopIteration as stop:
            played.append(stop.value)

    for setup in setups:
        go_on(play(setup, random.Random(setup.session ^ 0x5EED), make_core), None)
    while running:
        now, running = running, []
        draws = [(asked, request) for asked, request in now if isinstance(request, Draw)]
        rules = [(asked, request) for asked, request in now if isinstance(request, Rule)]
        if draws:
            for (asked, _), token in zip(draws, answerer.draws([r for _, r in draws]), strict=True):
                go_on(asked, token)
        if rules:
            for (asked, _), ruling in zip(rules, answerer.rulings([r for _, r in rules]), strict=True):
                go_on(asked, ruling)
    return played


# -- the test ----------------------------------------------------------------------------------------------------------


def _blocks(texts: Sequence[Sequence[int]]) -> dict[int, np.ndarray]:
    """Counts `[V ** BLOCK]` of blocks by the state before them. A block that the session's end cuts is filled up with
    the end: that is one outcome, as in `_law`. Blocks that the length limit cuts are left out, whatever they hold."""
    counts: dict[int, np.ndarray] = {}
    for text in texts:
        first = len(_PROMPT)
        while first < len(text) and (first + _BLOCK <= len(text) or text[-1] == _END):
            a, b = [*text[first : first + _BLOCK], _END][:_BLOCK]
            counts.setdefault(_state(text[first - 2 : first]), np.zeros(_V**_BLOCK))[a * _V + b] += 1
            first += _BLOCK
    return counts


def _law(state: int) -> np.ndarray:
    """The exact law of a block behind a state: `[V ** BLOCK]`. After the end nothing but the end comes."""
    p = TARGET.double().exp().numpy()
    law = np.zeros((_V, _V))
    for a in range(_V):
        law[a] = p[state, a] * (p[state % _V * _V + a] if a != _END else np.eye(_V)[_END])
    return law.flatten()


def _tail(chi_square: float, degrees: int) -> float:
    """The tail of the chi-square distribution, by Wilson and Hilferty's normal approximation (1931): within a few per
    cent of the logarithm for the hundreds of degrees of freedom here."""
    spread = 2 / (9 * degrees)
    z = ((chi_square / degrees) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return 0.5 * math.erfc(z / math.sqrt(2))


def p_value(texts: Sequence[Sequence[int]]) -> tuple[float, int]:
    """How likely the target gives blocks as far from its law as these, and how many blocks there are."""
    chi_square, degrees, total = 0.0, 0, 0
    for state, observed in _blocks(texts).items():
        n = int(observed.sum())
        total += n
        expected = _law(state) * n
        assert observed[expected == 0].sum() == 0, "an impossible text"
        # Cells with few expected counts are merged into one, so that the statistic has its distribution.
        few = expected < 8
        o, e = np.append(observed[~few], observed[few].sum()), np.append(expected[~few], expected[few].sum())
        o, e = (o[:-1], e[:-1]) if e[-1] < 1 else (o, e)
        if len(e) > 1:
            chi_square += float(((o - e) ** 2 / e).sum())
            degrees += len(e) - 1
    return _tail(chi_square, degrees), total


def test_the_test_has_its_significance() -> None:
    """Texts of the target itself: p-values are spread, not crowded at an end."""
    rng = np.random.default_rng(1)
    p = TARGET.double().exp().numpy().cumsum(-1)
    values = []
    for _ in range(20):
        texts = []
        for _ in range(300):
            text = list(_PROMPT)
            while len(text) < 26 and text[-1] != _END:
                text.append(min(int((p[_state(text)] < rng.random()).sum()), _V - 1))
            texts.append(text)
        values.append(p_value(texts)[0])
    assert min(values) > 1e-4 and 0.2 < float(np.mean(values)) < 0.8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sessions", "least"), [(2_000, 500), pytest.param(7_800, 2_000, marks=pytest.mark.exhaustive)]
)
def test_the_law_is_that_of_the_target(sessions: int, least: int) -> None:
    """`least`: how often everything that may happen to a window has to happen."""
    rng = random.Random(7)
    setups = [_setup(session, rng, limit=38) for session in range(sessions)]
    played = run(setups, Answerer())
    total = Counters()
    for p in played:
        total.add(p.counters)
    # The orders held what they are there for.
    assert sum(p.losses for p in played) > least // 4
    for name in ("stale_drafted", "stale_verified", "fallbacks", "hedge_hits", "hedge_misses", "from_plain", "censored",
                 "from_refill", "from_drafts"):  # fmt: skip
        assert getattr(total, name) > least, f"{name} is {getattr(total, name)}"
    value, blocks = p_value([p.tokens for p in played])
    assert blocks >= 12 * sessions
    assert value > _SIGNIFICANCE


class _Dropping(DrafterCore):
    """Leaves out the last draft of a window where the drafter itself thought it unlikely."""

    def ready(self) -> Window | None:
        window = super().ready()
        if window is None or len(window.drafted) < 2 or not window.bonus:
            return window
        context = [*self._committed[: window.start], *window.tokens[:-1]]
        if DRAFTER[_state(context), window.tokens[-1]].exp() > 0.3:
            return window
        first, end = self._sent.pop()
        self._sent.append((first, end - 1))
        self._tail = end - 1
        return replace(window, tokens=window.tokens[:-1])


def _one_uniform_for_two(coupling: Coupling, rows: Tensor, keys: Sequence[DrawKey]) -> couplings.Drawn:
    """Draws with the uniform that will decide about acceptance."""
    tokens = couplings.sample(rows.double().exp(), uniforms(keys, Purpose.accept))
    return couplings.Drawn(tokens.tolist(), [])


def _few(count: int, seed: int, **changes: object) -> list[Setup]:
    rng = random.Random(seed)
    return [replace(_setup(s, rng, limit=38), **changes) for s in range(count)]  # type: ignore[arg-type]


def test_a_draft_dropped_for_its_own_probability_is_found() -> None:
    setups = _few(400, 1, depth=1, window=2, patience=1000.0, faults=0.0, policy=Policy.redraft)
    assert p_value([p.tokens for p in run(setups, Answerer(), _Dropping)])[0] < _SIGNIFICANCE


def test_a_key_used_twice_is_found() -> None:
    played = run(_few(400, 2), Answerer(_one_uniform_for_two))
    assert p_value([p.tokens for p in played])[0] < _SIGNIFICANCE


class _Hasty(DrafterCore):
    """Ends a window behind a certain token, as one would behind an end of text: such windows are late less often."""

    def _ends(self, token: int) -> bool:
        return token == 3


def test_a_window_sent_sooner_for_what_is_in_it_is_found() -> None:
    setups = _few(600, 3, window=4, depth=1, patience=24.0, faults=0.0, policy=Policy.redraft, hedge=0, verifiers=1)
    assert p_value([p.tokens for p in run(setups, Answerer(), _Hasty)])[0] < _SIGNIFICANCE
