"""With `rows`, the bits of a position don't depend on how its tokens came or on what else was computed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.stages.lm.decoder import Decoder

from .conftest import Saved
from .models import logits_of, tokens

LENGTH = 100


@pytest.fixture(scope="module", params=[1, 5, 16])
def decoder(saved: Saved, request: pytest.FixtureRequest) -> Decoder:
    return Decoder.load(saved.folder, rows=request.param)


@pytest.fixture(scope="module")
def reference(saved: Saved, decoder: Decoder) -> torch.Tensor:
    sequence = decoder.open()
    logits = decoder.forward([(sequence, tokens(LENGTH))])[0]
    torch.testing.assert_close(logits, logits_of(saved.model, tokens(LENGTH)), atol=2e-5, rtol=0)
    return logits


@given(cuts=st.lists(st.integers(1, 16), min_size=1, max_size=12), other=st.integers(1, 16), data=st.data())
@settings(max_examples=12, deadline=None)
def test_any_split_gives_the_same_bits(
    decoder: Decoder, reference: torch.Tensor, cuts: list[int], other: int, data: st.DataObject
) -> None:
    """Windows of 1 to 16 tokens, another sequence in each forward, wrong drafts that are rolled back, and forks."""
    sequence, beside = decoder.open(), decoder.open()
    at = data.draw(st.sampled_from([0, 60]))
    if at:
        decoder.forward([(sequence, tokens(at))])
    for count in cuts:
        if at + count > LENGTH:
            break
        match data.draw(st.sampled_from(["nothing", "rollback", "fork"])):
            case "rollback":
                decoder.forward([(sequence, tokens(other, seed=9))])
                decoder.truncate(sequence, at)
            case "fork":
                old, sequence = sequence, decoder.fork(sequence, at)
                decoder.close(old)
        window = tokens(LENGTH)[at : at + count]
        logits = decoder.forward([(beside, tokens(1)), (sequence, window)])[1]
        assert torch.equal(logits, reference[at : at + count])
        at += count


def test_wanted_rows_have_the_same_bits(decoder: Decoder, reference: torch.Tensor) -> None:
    sequence = decoder.open()
    logits = decoder.forward([(sequence, tokens(LENGTH))], keep=[7])[0]
    assert torch.equal(logits, reference[-7:])


def test_runs_of_layers_have_the_same_bits(saved: Saved, decoder: Decoder, reference: torch.Tensor) -> None:
    runs = [Decoder.load(saved.folder, layers=run, rows=decoder.rows) for run in ((0, 2), (2, 3))]
    opened = [run.open() for run in runs]
    found = []
    for window in tokens(LENGTH).split(7):
        for run, sequence in zip(runs, opened, strict=True):
            window = run.forward([(sequence, window)])[0]
        found.append(window)
    assert torch.equal(torch.cat(found), reference)


def test_at_least_one_row(saved: Saved) -> None:
    with pytest.raises(ValueError, match="rows is 0"):
        Decoder.load(saved.folder, rows=0)
