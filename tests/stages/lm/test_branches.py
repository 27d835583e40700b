"""A branch is computed as if all its tokens were computed afresh, whatever was asked before, forked or rolled back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paceline.pipeline.speculation.drafter import Branch
from paceline.stages.lm.branches import Branches, common_prefix
from paceline.stages.lm.decoder import Decoder

from .conftest import Saved


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), max_size=40))
def test_common_prefix_counts_equal_tokens(one: list[int], other: list[int]) -> None:
    expected = 0
    while expected < min(len(one), len(other)) and one[expected] == other[expected]:
        expected += 1
    assert common_prefix(one, other) == expected
    assert common_prefix(one, one[:3] + other) == max(common_prefix(one, one[:3]), common_prefix(one, one[:3] + other))


@pytest.fixture(scope="module")
def decoder(llama: Saved) -> Decoder:
    return Decoder.load(llama.folder, rows=4)


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_branch_is_what_its_tokens_say(decoder: Decoder, data: st.DataObject) -> None:
    branches = Branches(decoder)
    open_before = decoder.sequences
    branches.open(5)
    main = data.draw(st.lists(st.integers(3, 6), min_size=1, max_size=6))
    committed, number, promoted_from = 1, 0, {0: main}
    step(branches, decoder, Branch(5, 0, 0, len(main)), main)
    for _ in range(data.draw(st.integers(1, 8))):
        action = data.draw(st.sampled_from(["extend", "change", "hedge", "settle", "promote"]))
        if action == "extend":
            main = [*main, data.draw(st.integers(3, 6))]
            step(branches, decoder, Branch(5, 0, 0, len(main)), main)
        elif action == "change":
            kept = data.draw(st.integers(committed, len(main)))
            main = main[:kept] + data.draw(st.lists(st.integers(7, 9), min_size=1, max_size=3))
            step(branches, decoder, Branch(5, 0, 0, len(main)), main)
            branches.settle(5, committed, True, None)
            promoted_from = {}
        elif action == "hedge":
            number += 1
            base = data.draw(st.integers(committed, len(main)))
            tokens = main[:base] + data.draw(st.lists(st.integers(10, 12), min_size=1, max_size=3))
            for end in range(base + 1, len(tokens) + 1):
                step(branches, decoder, Branch(5, 0, number, base, tuple(tokens[base:end])), tokens[:end])
            promoted_from[number] = tokens
        elif action == "settle":
            committed = data.draw(st.integers(committed, len(main)))
            branches.settle(5, committed, False, None)
        elif promoted_from.keys() & branches.numbers(5) - {0}:
            chosen = data.draw(st.sampled_from(sorted(promoted_from.keys() & branches.numbers(5) - {0})))
            main = promoted_from[chosen]
            branches.settle(5, committed, True, chosen)
            assert branches.numbers(5) == {0}
            promoted_from = {}
            main = [*main, data.draw(st.integers(3, 6))]
            step(branches, decoder, Branch(5, 0, 0, len(main)), main)
    assert len(decoder.sequences) - len(open_before) == len(branches.numbers(5))
    branches.close(5)
    assert decoder.sequences == open_before


def step(branches: Branches, decoder: Decoder, branch: Branch, tokens: list[int]) -> None:
    """One draft step: at least the last token is forwarded, and the logits are those of all tokens afresh."""
    sequence, new = branches.new_tokens(branch, tokens)
    assert new == tokens[len(tokens) - len(new) :]
    assert new
    (found,) = decoder.forward([(sequence, torch.tensor(new))], keep=[1])
    assert decoder.length(sequence) == len(tokens)
    fresh = decoder.open()
    (expected,) = decoder.forward([(fresh, torch.tensor(tokens))], keep=[1])
    decoder.close(fresh)
    assert torch.equal(found, expected)


def test_a_chain_that_grows_forwards_one_token_at_a_time(decoder: Decoder) -> None:
    branches = Branches(decoder)
    branches.open(1)
    tokens = [3, 4, 5, 6]
    branches.new_tokens(Branch(1, 0, 0, 4), tokens)
    for extra in range(5):
        tokens = [*tokens, 7 + extra]
        _, new = branches.new_tokens(Branch(1, 0, 0, len(tokens)), tokens)
        assert new == [7 + extra]
    branches.close(1)


def test_a_hedge_in_the_forward_that_brings_its_main_chain_up(decoder: Decoder) -> None:
    branches = Branches(decoder)
    branches.open(6)
    step(branches, decoder, Branch(6, 0, 0, 1), [3])
    # The main chain is three tokens behind, and the hedge parts from it at the last of them.
    main, hedge = [3, 4, 5, 6], [3, 4, 5, 9]
    sequence, new = branches.new_tokens(Branch(6, 0, 0, 4), main)
    other, fresh = branches.new_tokens(Branch(6, 0, 1, 3, (9,)), hedge)
    assert (new, fresh) == ([4, 5, 6], [4, 5, 9])
    together = decoder.forward([(sequence, torch.tensor(new)), (other, torch.tensor(fresh))], keep=[1, 1])
    alone = decoder.open()
    for found, tokens in zip(together, (main, hedge), strict=True):
        assert torch.equal(found, decoder.forward([(alone, torch.tensor(tokens))], keep=[1])[0])
        decoder.truncate(alone, 0)
    decoder.close(alone)
    branches.close(6)
