"""Couplings: deterministic ones give the target's token whatever was drafted; rejection keeps the target's law."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from paceline.kernels.gumbel import DrawKey, GumbelRows, gumbel
from paceline.pipeline.speculation.acceptor import Acceptor, Check
from paceline.pipeline.speculation.window import Coupling, Window
from paceline.stages.couplings import Judgement, alternatives, draw, judge_rows, sample

_V = 12


def _rows(n: int, seed: int, scale: float = 1.0, top: int | None = None) -> Tensor:
    logits = torch.randn(n, _V, generator=torch.Generator().manual_seed(seed)) * scale
    if top is not None:
        logits = logits.masked_fill(logits < logits.topk(top).values[:, -1:], -torch.inf)
    return logits.log_softmax(-1)


def _check(drafted: Sequence[int], bonus: bool, coupling: Coupling, prompt: int = 4, epoch: int = 0) -> Check:
    window = Window(0, epoch, 0, (*[1] * prompt, *drafted), prompt, bonus)
    check = Acceptor(0, [1] * prompt, 1000, coupling).plan(window)
    assert check is not None and check.drafted == tuple(drafted)
    return check


@pytest.mark.parametrize("coupling", [Coupling.greedy, Coupling.gumbel])
def test_a_deterministic_coupling_gives_the_targets_tokens(coupling: Coupling) -> None:
    noise = GumbelRows(_V)
    judgements, expected = [], []
    for seed in range(60):
        rows = _rows(4, seed)
        scores = rows + gumbel([seed] * 4, range(4, 8), _V) if coupling is Coupling.gumbel else rows
        mine = scores.argmax(-1).tolist()
        wrong = seed % 4
        drafted = [(t + 1) % _V if i == wrong else t for i, t in enumerate(mine[:3])]
        judgements.append(Judgement(_check(drafted, False, coupling), rows, seed))
        expected.append((wrong, mine[wrong], None) if wrong < 3 else (3, None, mine[3]))
    together = judge_rows(coupling, judgements, noise)
    assert [(r.accepted, r.replacement, r.extra) for r in together] == expected
    assert together == [judge_rows(coupling, [j], noise)[0] for j in judgements]


def test_a_drafter_that_is_the_target_is_always_accepted() -> None:
    noise = GumbelRows(_V)
    for coupling in Coupling:
        for seed in range(40):
            rows = _rows(3, seed, top=5)
            drawn = draw(coupling, rows, [DrawKey(seed, 4 + i) for i in range(3)], noise)
            judgement = Judgement(
                _check(drawn.tokens, False, coupling), torch.cat([rows, rows[:1]]), seed, drawn.chances
            )
            if coupling is Coupling.rejection:
                judgement = Judgement(judgement.check, rows, seed, drawn.chances)
            assert judge_rows(coupling, [judgement], noise)[0].accepted == 3


def _chi_square(counts: Tensor, p: Tensor) -> float:
    expected = p.double() * counts.sum()
    assert torch.all(counts[expected == 0] == 0)
    kept = expected > 0
    return float(((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum())


def test_sample_has_the_law_and_never_takes_what_is_impossible() -> None:
    p = torch.tensor([0.0, 0.3, 0.0, 0.6, 0.1, 0.0], dtype=torch.float64)
    edge = torch.tensor([0.0, 1e-300, 1 - 2**-54, 1.0], dtype=torch.float64)
    assert sample(p.repeat(4, 1), edge).tolist() == [1, 1, 4, 4]
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    assert (sample(p.repeat(100_000, 1), u).bincount(minlength=6) / 100_000).tolist() == pytest.approx(p.tolist())


@pytest.mark.parametrize("scale", [0.3, 2.0])
def test_rejection_keeps_the_law_of_the_first_token(scale: float) -> None:
    """40,000 windows of one draft, drawn from q and judged by p: what is committed first is distributed as p, what
    follows an accepted draft as the next row. Chi-square with 11 degrees of freedom; 52 has a tail of 3e-7."""
    n = 40_000
    log_p, log_q = _rows(2, 1, scale), _rows(1, 2, scale)
    keys = [DrawKey(seed, 4) for seed in range(n)]
    drawn = draw(Coupling.rejection, log_q.expand(n, _V), keys)
    assert drawn.chances[0] == pytest.approx(float(log_q[0, drawn.tokens[0]].exp()), rel=1e-5)
    judgements = [
        Judgement(_check([x], True, Coupling.rejection), log_p, seed, [chance], lambda _: log_q[0])
        for seed, (x, chance) in enumerate(zip(drawn.tokens, drawn.chances, strict=True))
    ]
    first, second = torch.zeros(_V), torch.zeros(_V)
    for ruling, x in zip(judge_rows(Coupling.rejection, judgements), drawn.tokens, strict=True):
        first[x if ruling.accepted else ruling.replacement] += 1  # type: ignore[index]
        if ruling.extra is not None:
            second[ruling.extra] += 1
    assert _chi_square(first, log_p[0].exp()) < 52
    assert _chi_square(second, log_p[1].exp()) < 52
    # The highest acceptance that a coupling can have: 1 - TV(p, q), within 5 standard errors.
    best = float(torch.minimum(log_p[0].exp(), log_q[0].exp()).sum())
    assert abs(float(second.sum()) / n - best) < 5 * (best * (1 - best) / n) ** 0.5


def test_draws_of_different_purpose_or_epoch_are_independent() -> None:
    log_p = _rows(1, 5)
    plain = [Window(0, epoch, 0, (1, 1, 1, 1), 4, True) for epoch in range(2)]
    tokens = []
    for window in plain:
        check = Acceptor(0, [1] * 4, 1000, Coupling.rejection).plan(window)
        assert check is not None and check.plain
        tokens.append(
            [r.extra for r in judge_rows(Coupling.rejection, [Judgement(check, log_p, s) for s in range(2_000)])]
        )
    drafts = draw(Coupling.rejection, log_p.expand(2_000, _V), [DrawKey(s, 4) for s in range(2_000)]).tokens
    same = float((log_p.double().exp() ** 2).sum())
    margin = 5 * (same * (1 - same) / 2_000) ** 0.5
    for other in (tokens[1], drafts):
        assert abs(sum(a == b for a, b in zip(tokens[0], other, strict=True)) / 2_000 - same) < margin


def test_alternatives_are_the_runners_up() -> None:
    rows = _rows(3, 9, top=4)
    keys = [DrawKey(1, position) for position in range(3)]
    noise = GumbelRows(_V)
    for coupling in Coupling:
        drawn = draw(coupling, rows, keys, noise)
        named = alternatives(coupling, rows, keys, drawn.tokens, 2, noise)
        scores = rows + gumbel([1] * 3, range(3), _V) if coupling is Coupling.gumbel else rows
        for row, token, others in zip(scores, drawn.tokens, named, strict=True):
            order = [t for t in row.argsort(descending=True).tolist() if t != token]
            assert [t for t, _ in others] == order[:2]
            assert 0 < sum(share for _, share in others) <= 1 + 1e-6
    only = torch.full((1, _V), -torch.inf)
    only[0, 3] = 0.0
    assert alternatives(Coupling.greedy, only, keys[:1], [3], 2) == [()]


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="noise"):
        draw(Coupling.gumbel, _rows(1, 1), [DrawKey(0, 0)])
    check = _check([int(_rows(1, 1)[0].argmin())], False, Coupling.rejection)
    with pytest.raises(ValueError, match="drafter's row"):
        judge_rows(Coupling.rejection, [Judgement(check, _rows(1, 1), 0, [1.0])])
