"""A decoder computes what Transformers computes, however the tokens are packed, cut, truncated and forked."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from paceline.stages.lm.decoder import Decoder

from .conftest import Saved
from .models import VOCAB, logits_of, tokens

TOLERANCE = 2e-5
"""Absolute, for logits of size 4 in float32: other shapes of matrix products add in other orders."""


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


@pytest.fixture(scope="module")
def decoder(saved: Saved) -> Decoder:
    return Decoder.load(saved.folder)


def test_what_a_decoder_says_of_itself(saved: Saved, decoder: Decoder) -> None:
    assert (decoder.first, decoder.last, decoder.layers) == (True, True, range(3))
    assert (decoder.vocab, decoder.hidden, decoder.max_positions) == (VOCAB, 32, 128)
    assert decoder.sequences == [] and decoder.nbytes() == 0


@pytest.mark.parametrize("cuts", [[40], [1] * 40, [13, 1, 8, 1, 1, 16]], ids=["prefill", "decode", "chunks"])
def test_logits_are_those_of_transformers(saved: Saved, decoder: Decoder, cuts: list[int]) -> None:
    ids = tokens(40)
    sequence = decoder.open()
    ours = torch.cat([decoder.forward([(sequence, part)])[0] for part in ids.split(cuts)])
    assert ours.dtype == torch.float32 and decoder.length(sequence) == 40
    close(ours, logits_of(saved.model, ids))
    decoder.close(sequence)


def test_sequences_of_different_length_are_packed_in_one_forward(saved: Saved, decoder: Decoder) -> None:
    """A prompt, a window, single tokens, twice: each gives what it gives alone."""
    texts = [tokens(n, seed=n) for n in (37, 20, 9, 31)]
    opened = [decoder.open() for _ in texts]
    have = [0, 12, 8, 30]
    for sequence, text, count in zip(opened, texts, have, strict=True):
        if count:
            decoder.forward([(sequence, text[:count])])
    seen: list[list[torch.Tensor]] = [[] for _ in texts]
    for counts in ((30, 7, 1, 1), (7, 1)):
        batch = []
        for index, count in enumerate(counts):
            batch.append((opened[index], texts[index][have[index] : have[index] + count]))
            have[index] += count
        for rows, logits in zip(seen, decoder.forward(batch), strict=False):
            rows.append(logits)
    for text, rows in zip(texts, seen, strict=True):
        found = torch.cat(rows)
        close(found, logits_of(saved.model, text)[-len(found) :])
    for sequence in opened:
        decoder.close(sequence)


def test_greedy_tokens_are_those_of_generate(saved: Saved, decoder: Decoder) -> None:
    prompt = tokens(11, seed=4)
    theirs = saved.model.generate(
        prompt[None], attention_mask=torch.ones(1, 11), max_new_tokens=40, do_sample=False, eos_token_id=None
    )[0, 11:].tolist()
    sequence = decoder.open()
    ours: list[int] = []
    given = prompt
    while len(ours) < 40:
        ours.append(int(decoder.forward([(sequence, given)], keep=[1])[0].argmax()))
        given = torch.tensor(ours[-1:])
    assert ours == theirs
    decoder.close(sequence)


@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_truncate_and_fork_are_a_fresh_forward(saved: Saved, decoder: Decoder, data: st.DataObject) -> None:
    """Whatever was appended, truncated, forked and closed before: the next logits are those of the text left."""
    for left in decoder.sequences:  # by an example that failed
        decoder.close(left)
    texts: dict[int, list[int]] = {decoder.open(): []}
    for step in range(data.draw(st.integers(2, 8))):
        sequence = data.draw(st.sampled_from(sorted(texts)))
        text = texts[sequence]
        match data.draw(st.sampled_from(["append", "append", "truncate", "fork", "close"])):
            case "truncate":
                del text[data.draw(st.integers(0, len(text))) :]
                decoder.truncate(sequence, len(text))
            case "fork":
                length = data.draw(st.integers(0, len(text)))
                texts[decoder.fork(sequence, length)] = text[:length]
            case "close" if len(texts) > 1:
                decoder.close(sequence)
                del texts[sequence]
            case _ if len(text) < 100:
                more = tokens(data.draw(st.integers(1, 9)), seed=step)
                text += more.tolist()
                logits = decoder.forward([(sequence, more)])[0]
                close(logits, logits_of(saved.model, torch.tensor(text))[-len(more) :])
    assert {sequence: decoder.length(sequence) for sequence in texts} == {s: len(t) for s, t in texts.items()}
    for sequence in texts:
        decoder.close(sequence)
    assert decoder.nbytes() == 0


def test_the_head_is_computed_only_where_it_is_wanted(decoder: Decoder) -> None:
    one, two = decoder.open(), decoder.open()
    logits = decoder.forward([(one, tokens(9)), (two, tokens(4, 1))], keep=[2, 4])
    assert [list(part.shape) for part in logits] == [[2, VOCAB], [4, VOCAB]]
    decoder.truncate(one, 0)
    close(logits[0], decoder.forward([(one, tokens(9))])[0][-2:])
    with pytest.raises(ValueError, match="keep is"):
        decoder.forward([(one, tokens(2))], keep=[3])
    for sequence in (one, two):
        decoder.close(sequence)


@pytest.mark.parametrize("rows", [None, 4])
def test_a_forward_that_fails_leaves_all_sequences_as_they_were(saved: Saved, rows: int | None) -> None:
    decoder = Decoder.load(saved.folder, rows=rows)
    good, bad = decoder.open(), decoder.open()
    decoder.forward([(good, tokens(5)), (bad, tokens(5))])
    with pytest.raises(ValueError, match=f"token {VOCAB} is none of the {VOCAB} that the model has"):
        decoder.forward([(good, tokens(6, 1)), (bad, torch.tensor([VOCAB]))])
    assert (decoder.length(good), decoder.length(bad)) == (5, 5)
    logits = decoder.forward([(good, tokens(6, 2))])[0]
    close(logits, logits_of(saved.model, torch.cat([tokens(5), tokens(6, 2)]))[5:])


def test_kv_takes_at_most_twice_what_is_used(llama: Saved) -> None:
    decoder = Decoder.load(llama.folder)
    sequence = decoder.open()
    each = 3 * 2 * 2 * 8 * 4  # layers, keys and values, heads, width, bytes
    sizes = set()
    for length in range(1, 129):
        decoder.forward([(sequence, tokens(1))])
        sizes.add(decoder.nbytes(sequence))
        assert length * each <= decoder.nbytes(sequence) <= max(64, 2 * length) * each
    assert len(sizes) == 2  # grew once, not at each token


def test_a_whole_prompt_may_be_longer_than_a_first_buffer(saved: Saved, decoder: Decoder) -> None:
    sequence = decoder.open()
    close(decoder.forward([(sequence, tokens(128))])[0], logits_of(saved.model, tokens(128)))
    with pytest.raises(ValueError, match=r"128 \+ 1 positions pass the model's limit of 128"):
        decoder.forward([(sequence, tokens(1))])
    decoder.close(sequence)


def test_wrong_inputs_are_refused(decoder: Decoder) -> None:
    sequence = decoder.open()
    assert decoder.forward([]) == []
    for wrong in (torch.zeros(0, dtype=torch.int64), torch.zeros(2), torch.zeros(1, 2, dtype=torch.int64)):
        with pytest.raises(ValueError, match="takes token ids"):
            decoder.forward([(sequence, wrong)])
    with pytest.raises(ValueError, match="named twice"):
        decoder.forward([(sequence, tokens(1)), (sequence, tokens(1))])
    with pytest.raises(ValueError, match="has 0 positions, not 3"):
        decoder.truncate(sequence, 3)
    decoder.close(sequence)
    with pytest.raises(ValueError, match="is not open"):
        decoder.length(sequence)
