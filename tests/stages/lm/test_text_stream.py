"""Text that is shown token by token is the text of all tokens, up to the first stop string."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from paceline.stages.lm.detokenise import WindowPieces, byte_of_character
from paceline.stages.lm.text_stream import Stop, StopMatcher, TextStream
from paceline.stages.lm.tokenizer import Tokenizer

from .tokenizers_made import byte_fallback, byte_level

WRITING = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd▁"), max_size=40)


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    byte_level(tmp_path_factory.mktemp("bytes"))
    return Tokenizer.load(tmp_path_factory.getbasetemp() / "bytes0")


@pytest.fixture(scope="module")
def fallback(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    byte_fallback(tmp_path_factory.mktemp("fallback"))
    return Tokenizer.load(tmp_path_factory.getbasetemp() / "fallback0")


def test_the_way_bytes_are_written() -> None:
    table = byte_of_character()
    assert sorted(table.values()) == list(range(256))
    assert (table["A"], table["Ġ"], table["Ċ"], table["Ã"]) == (65, 32, 10, 0xC3)


@given(ids=st.lists(st.integers(0, 340), max_size=30))
def test_any_tokens_give_the_text_of_the_whole(bytewise: Tokenizer, ids: list[int]) -> None:
    """Also where the bytes are no UTF-8, with special and added tokens, and ids that only pad the embedding."""
    stream = TextStream(bytewise)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.finish() == bytewise.decode(ids)
    assert stream.tokens == len(ids) and stream.stop is None


@given(text=WRITING)
@example(text="größer 東京都 👩‍👩‍👧 é")
def test_no_half_characters(bytewise: Tokenizer, fallback: Tokenizer, text: str) -> None:
    """What was shown is always a beginning of the text, and lags behind by the last, incomplete character at most."""
    for tokenizer in (bytewise, fallback):
        ids = tokenizer.encode(text) if text else []
        stream = TextStream(tokenizer)
        shown, silent = "", 0
        for count, token in enumerate(ids, 1):
            piece = stream.push(token)
            shown += piece
            assert text.startswith(shown)
            if tokenizer is bytewise:
                assert tokenizer.decode(ids[:count]).rstrip("\ufffd") == shown
            silent = 0 if piece else silent + 1
            assert silent <= 4  # the mark that begins a text, and three bytes of a character
        assert shown + stream.finish() == text


@given(prompt=WRITING.filter(bool), text=WRITING)
def test_what_comes_after_a_prompt(fallback: Tokenizer, prompt: str, text: str) -> None:
    """A space that begins a completion is no space that begins a text, which these tokenizers swallow."""
    ids = fallback.encode(prompt + text)
    for cut in (1, len(ids) // 2):
        before = fallback.decode(ids[:cut])
        if cut and not before.endswith("\ufffd"):
            stream = TextStream(fallback, context=ids[:cut])
            assert before + "".join(map(stream.push, ids[cut:])) + stream.finish() == prompt + text


def test_bytes_that_are_never_a_character_are_not_held_for_ever(fallback: Tokenizer) -> None:
    stream = TextStream(fallback)
    pieces = [stream.push(fallback.vocabulary()["<0xFF>"]) for _ in range(40)]
    assert 36 <= len("".join(pieces)) <= 40


@pytest.mark.parametrize("kind", ["bytes", "window"])
def test_a_token_costs_the_same_in_a_long_text(bytewise: Tokenizer, kind: str) -> None:
    """Counted in tokens decoded, not in seconds."""
    seen: list[int] = []

    def decode(ids: object) -> str:
        assert isinstance(ids, list)
        seen.append(len(ids))
        return bytewise.decode(ids)

    pieces = WindowPieces(decode, frozenset(), ()) if kind == "window" else bytewise.pieces()
    ids = bytewise.encode("for name in größer: 東京 \n" * 50)
    assert "".join(map(pieces.push, ids)) == bytewise.decode(ids)
    assert max(seen, default=0) <= 10


def first_complete(text: str, stops: list[str]) -> tuple[int, int, str] | None:
    """The definition, read off the whole text: `(end, begin, stop)`."""
    found = [(at + len(stop), at, stop) for stop in stops for at in range(len(text)) if text.startswith(stop, at)]
    return min(found, default=None)


ABC = st.text("abc", max_size=14)


@given(pieces=st.lists(st.text("abc", max_size=4), max_size=8), stops=st.lists(ABC.filter(bool), max_size=3))
@example(pieces=["xa", "b", "c"], stops=["abc", "b"])
@example(pieces=["a", "ab"], stops=["aab", "ab"])
def test_the_first_complete_stop_string_wins_wherever_pieces_end(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    matcher = StopMatcher(stops)
    shown = ""
    for piece in pieces:
        shown += matcher.push(piece)
        expected = first_complete(text, stops)
        assert text[: expected[1] if expected else len(text)].startswith(shown)  # nothing is ever taken back
    shown += matcher.finish()
    expected = first_complete(text, stops)
    assert (shown, matcher.found) == ((text[: expected[1]], expected[2]) if expected else (text, None))


@given(text=st.text("ab é東\n", max_size=30), stops=st.lists(st.text("ab é東\n", min_size=1, max_size=4), max_size=2))
def test_where_a_sequence_is_cut(bytewise: Tokenizer, text: str, stops: list[str]) -> None:
    """At the first token with which the text so far holds a stop string."""
    ids = bytewise.encode(text) if text else []
    stream = TextStream(bytewise, stops)
    shown = "".join(map(stream.push, ids)) + stream.finish()
    expected = first_complete(text, stops)
    if expected is None:
        assert shown == text and stream.stop is None
        return
    texts = (bytewise.decode(ids[:count]) for count in range(len(ids) + 1))
    count = next(count for count, part in enumerate(texts) if any(stop in part for stop in stops))
    assert shown == text[: expected[1]]
    assert stream.stop == Stop(expected[2], count) and stream.tokens == count


def test_only_what_may_begin_a_stop_string_is_held() -> None:
    matcher = StopMatcher(["\n\nclass"])
    assert [matcher.push(piece) for piece in ("x\n", "\ncl", "ean", "\n")] == ["x", "", "\n\nclean", ""]
    assert matcher.finish() == "\n"
    with pytest.raises(ValueError, match="a stop string is empty"):
        StopMatcher([""])


@given(text=WRITING, data=st.data())
@example(text="größer 東京都 👩‍👩‍👧 é", data=None)
def test_a_text_that_is_cut_within_a_character_goes_on_where_it_was(
    bytewise: Tokenizer, fallback: Tokenizer, text: str, data: st.DataObject | None
) -> None:
    for tokenizer in (bytewise, fallback):
        begin = tokenizer.encode("x")
        ids = begin + tokenizer.encode_more(text)
        whole = TextStream(tokenizer, context=begin)
        wanted = "".join(map(whole.push, ids[len(begin) :])) + whole.finish()
        places = range(len(begin), len(ids) + 1)
        for at in places if data is None else [data.draw(st.sampled_from(places))]:
            first = TextStream(tokenizer, context=begin)
            shown = "".join(map(first.push, ids[len(begin) : at])) + first.finish(cut=True)
            assert wanted.startswith(shown)
            second = TextStream(tokenizer, context=ids[:at], cut=True)
            assert shown + "".join(map(second.push, ids[at:])) + second.finish() == wanted


@given(ids=st.lists(st.integers(0, 340), max_size=30), at=st.integers(0, 30))
def test_any_tokens_go_on_where_they_were_cut(bytewise: Tokenizer, ids: list[int], at: int) -> None:
    first = TextStream(bytewise)
    shown = "".join(map(first.push, ids[:at])) + first.finish(cut=True)
    second = TextStream(bytewise, context=ids[:at], cut=True)
    assert shown + "".join(map(second.push, ids[at:])) + second.finish() == bytewise.decode(ids)


def test_a_replacement_character_that_ends_a_prompt_is_the_prompts_own(fallback: Tokenizer) -> None:
    ids = fallback.encode("x\ufffd")
    stream = TextStream(fallback, context=ids)
    assert stream.push(fallback.vocabulary()["f"]) + stream.finish() == "f"
