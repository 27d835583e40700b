"""From tokens to text, one token at a time: text is given as soon as its characters are complete, and not before.

The cost of a token does not grow with the text.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from functools import cache
from typing import Protocol

__all__ = ["ByteLevelPieces", "Pieces", "WindowPieces", "byte_of_character"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_HELD = 4
"""A character of UTF-8 has at most four bytes, so that more tokens than these can't all be waiting for its end."""
_TAIL = 16
"""Last tokens of a text that are looked at for an incomplete character: room for some that are no text among them."""
_CONTEXT = 6
"""How much before the new tokens some decoders are shown (is a leading space the first of the text?)."""


class Pieces(Protocol):
    """Turns tokens into pieces of text whose concatenation is the text of all of them."""

    def push(self, token: int) -> str:
        """The characters that are complete with this token."""

    def finish(self) -> str:
        """What is left when no token follows: U+FFFD for an incomplete character."""


@cache
def byte_of_character() -> dict[str, int]:
    """GPT-2's way of writing bytes as printable characters, inverted (Radford et al. 2019, `bytes_to_unicode`)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + index): byte for index, byte in enumerate(rest)}


class ByteLevelPieces:
    """For byte-level BPE: tokens are bytes, decoded as they come. Equal to decoding the whole, ill-formed bytes too."""

    def __init__(self, name_of: Callable[[int], str | None], context: Sequence[int] = ()) -> None:
        """The incomplete character at the end of `context`, if there is one, is the beginning of what comes."""
        self._name_of = name_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in context[max(0, len(context) - _TAIL) :]:
            self.push(token)

    def push(self, token: int) -> str:
        """See `Pieces.push`. A token without a name (special, or padding of the embedding) is no text."""
        name = self._name_of(token)
        return "" if name is None else self._decoder.decode(_bytes_of(name))

    def finish(self) -> str:
        """See `Pieces.finish`."""
        rest = self._decoder.decode(b"", True)
        self._decoder.reset()
        return rest


def _bytes_of(name: str) -> bytes:
    table = byte_of_character()
    try:
        return bytes([table[character] for character in name])
    except KeyError:  # an added token, written as it is
        return name.encode("utf-8")


class WindowPieces:
    """For any other tokenizer: decodes the last few tokens with and without the new ones, and gives the difference.

    `context` are tokens before the first new one (a prompt), whose text is not given. Where a model emits bytes that
    are no UTF-8, replacement characters may differ in number from those of decoding the whole.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], silent: frozenset[int], context: Sequence[int], cut: bool = False
    ) -> None:
        """With `cut` the incomplete character at the end of `context`, if there is one, is the beginning of what
        comes."""
        self._decode, self._silent = decode, silent
        shown = [token for token in context if token not in silent]
        begun = _incomplete(decode, shown) if cut else 0
        self._pending = shown[len(shown) - begun :]
        self._groups = [_end_of(decode, shown[: len(shown) - begun])]
        """Tokens that were given together, oldest first: the window may only begin where a character does."""
        self._before = decode(self._groups[0])

    def push(self, token: int) -> str:
        """See `Pieces.push`."""
        if token in self._silent:
            return ""
        self._pending.append(token)
        if len(self._pending) < _HELD and self._text().endswith(_REPLACEMENT):
            return ""
        return self.finish()

    def finish(self) -> str:
        """See `Pieces.finish`."""
        piece = self._text()[len(self._before) :]
        self._groups = [group for group in (*self._groups, self._pending) if group][-_CONTEXT:]
        self._pending = []
        self._before = self._text()
        return piece

    def _text(self) -> str:
        return self._decode([token for group in (*self._groups, self._pending) for token in group])


def _incomplete(decode: Callable[[Sequence[int]], str], tokens: Sequence[int]) -> int:
    """How many of the last tokens are the beginning of a character."""
    for count in range(min(_HELD, len(tokens) + 1)):
        if not decode(_end_of(decode, tokens[: len(tokens) - count])).endswith(_REPLACEMENT):
            return count
    return 0  # bytes that are no character, and were given as such


def _end_of(decode: Callable[[Sequence[int]], str], tokens: Sequence[int]) -> list[int]:
    """The last few tokens, from where a character begins."""
    starts = range(max(len(tokens) - _CONTEXT, 0), max(len(tokens) - _CONTEXT - _HELD, -1), -1)
    for start in starts:
        if not decode(tokens[start:]).startswith(_REPLACEMENT):
            return list(tokens[start:])
    return list(tokens[starts.start :])
