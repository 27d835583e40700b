"""The rejection coupling in a run: its counts add up. Its distribution is tested elsewhere, without timing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runtime.language.cluster import generate, language, spec_of
from tests.runtime.language.test_same_text import PROMPTS, counted

pytestmark = pytest.mark.usefixtures("read_once")


@pytest.mark.parametrize(
    ("window", "depth", "hedge", "verifiers", "drafter"),
    [(3, 1, 0, 1, "model"), (3, 1, 4, 1, "model"), (4, 3, 4, 1, "model"), (2, 3, 5, 3, "model"), (3, 2, 0, 2, "ngram"),
     ("auto", "auto", "auto", 1, "model")],
)  # fmt: skip
def test_counts_add_up(
    pair: tuple[Path, Path], window: int, depth: int, hedge: int, verifiers: int, drafter: str
) -> None:
    keys = {"speculation__window": window, "speculation__depth": depth, "speculation__hedge": hedge}
    topology = language(pair, verifiers, speculation__coupling="rejection", speculation__drafter=drafter, **keys)
    result = generate(spec_of(topology, PROMPTS, max_tokens=40, ignore_eos=True))
    assert [len(text.token_ids) for text in result.sessions] == [40] * 4
    drafted, refilled = (sum(getattr(text, name) for text in result.sessions) for name in ("drafted", "refilled"))
    assert drafted == counted(result, "from_drafts")
    assert refilled == counted(result, "from_refill")
    assert drafted + refilled + counted(result, "from_plain") == 160
    judged, accepted, rejections = (counted(result, name) for name in ("judged", "accepted", "rejections"))
    assert judged == accepted + rejections
    # A draft that was accepted beyond the session's end is not committed.
    assert 0 <= accepted - drafted <= 4 * 6
    if drafter == "model" and window != "auto":
        assert drafted > 40
        made = counted(result, "main_drafted") + counted(result, "hedge_used")
        stale = counted(result, "stale_drafted") + counted(result, "late") + counted(result, "censored")
        assert judged + stale <= made
    if hedge and drafter == "model" and window != "auto":
        assert counted(result, "hedge_hits") + counted(result, "hedge_misses") > 0
    assert result.warnings == []
