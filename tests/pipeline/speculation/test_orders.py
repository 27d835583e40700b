"""Deterministic couplings under every order of events: the text is that of plain decoding, token for token."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paceline.pipeline.speculation.counters import Counters
from paceline.pipeline.speculation.window import Coupling, FinishReason, Policy
from tests.pipeline.speculation.driver import Draw, Played, Rule, Setup, play

_VOCABULARY = 6


def _hash(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "little")


def _target(seed: int, context: Sequence[int]) -> int:
    return _hash("target", seed, tuple(context)) % _VOCABULARY


def _drafter(seed: int, alpha: float, context: Sequence[int]) -> int:
    agrees = _hash("agrees", seed, tuple(context)) < alpha * 2**32
    right = _target(seed, context)
    return right if agrees else (right + 1 + _hash("wrong", seed, tuple(context)) % (_VOCABULARY - 1)) % _VOCABULARY


def plain(setup: Setup, seed: int) -> list[int]:
    """The text as plain decoding gives it."""
    tokens = list(setup.prompt)
    while len(tokens) < setup.limit and (len(tokens) == len(setup.prompt) or tokens[-1] not in setup.eos):
        tokens.append(_target(seed, tokens))
    return tokens


def answered(setup: Setup, seed: int, alpha: float) -> Played:
    """Plays a session, answering with the target and a drafter that agrees with it with chance `alpha`."""
    asked = play(setup, random.Random(seed))
    answer = None
    events = 0
    while True:
        try:
            request = asked.send(answer)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        events += 1
        assert events < 20_000, "the session does not end"
        if isinstance(request, Draw):
            token = _drafter(seed, alpha, request.context)
            others = [t for t in range(_VOCABULARY) if t != token]
            answer = (token, [(t, 1 / len(others)) for t in others])
        else:
            answer = _ruled(request, seed)


def _ruled(rule: Rule, seed: int) -> tuple[int, int | None, int | None]:
    check = rule.check
    for index, token in enumerate(check.drafted):
        right = _target(seed, rule.contexts[index])
        if right != token:
            return index, right, None
    return len(check.drafted), None, _target(seed, rule.contexts[-1]) if check.extra else None


_SETUPS = st.builds(
    Setup,
    session=st.just(3),
    prompt=st.lists(st.integers(0, _VOCABULARY - 1), min_size=1, max_size=7).map(tuple),
    limit=st.integers(8, 40),
    coupling=st.sampled_from([Coupling.greedy, Coupling.gumbel]),
    window=st.integers(1, 5),
    depth=st.integers(1, 4),
    hedge=st.integers(0, 6),
    policy=st.sampled_from(list(Policy)),
    verifiers=st.integers(1, 3),
    patience=st.sampled_from([0.0, 20.0, 80.0, 1000.0]),
    chunk=st.integers(1, 9),
    eos=st.sampled_from([frozenset(), frozenset({0})]),
    faults=st.sampled_from([0.0, 0.0, 0.02]),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_SETUPS, st.integers(0, 2**32), st.sampled_from([0.0, 0.5, 0.8, 0.95, 1.0]))
def test_every_order_gives_the_text_of_plain_decoding(setup: Setup, seed: int, alpha: float) -> None:
    played = answered(setup, seed, alpha)
    assert played.tokens == plain(setup, seed)
    last = played.verdicts[-1]
    assert last.finish is (FinishReason.eos if played.tokens[-1] in setup.eos else FinishReason.length)
    told = [token for verdict in played.verdicts for token in verdict.tokens]
    assert list(setup.prompt) + told == played.tokens
    if setup.faults == 0:
        assert played.max_underway <= setup.depth
    counters = played.counters
    assert counters.from_drafts + counters.from_refill + counters.from_plain == len(told)
    assert counters.judged - counters.accepted == counters.rejections
    if alpha == 1.0:
        assert counters.rejections == 0 and counters.censored == 0


@pytest.mark.parametrize("alpha", [0.6, 0.9])
@pytest.mark.parametrize("coupling", [Coupling.greedy, Coupling.gumbel])
def test_what_the_orders_cover(alpha: float, coupling: Coupling) -> None:
    """The orders drawn do contain what they are there for: stale windows, late ones, hits, misses, plain passes."""
    total = Counters()
    for seed in range(60):
        setup = Setup(
            session=0, prompt=(1, 2), limit=40, coupling=coupling, window=1 + seed % 4, depth=1 + seed % 3,
            hedge=seed % 5, policy=list(Policy)[seed % 3], verifiers=1 + seed % 3,
            patience=(20.0, 80.0, 1000.0)[seed % 3],
        )  # fmt: skip
        total.add(answered(setup, seed, alpha).counters)
    for name in ("from_drafts", "from_refill", "from_plain", "stale_drafted", "stale_verified", "late", "fallbacks",
                 "hedge_hits", "hedge_misses", "censored", "obsolete", "redrafts"):  # fmt: skip
        assert getattr(total, name) > 0, name
