"""Texts of multi-query associative recall, as in zoology (Arora et al. 2023, arXiv 2312.04927).

A text is n pairs of a key and its value, `k17 v3 k5 v90 ...`, and then slots of two tokens. Every key comes once more,
in a slot drawn by a power law, a x^(a - 1) over slots x = 1, 2, ... with a = 0.01, so that many are near and a few far
away. The key's value stands behind it, and is what has to be recalled. Other slots hold random words, `w8 w61`. Keys
and values of a text differ from one another. Three things are not as in zoology: there are 574 tokens and not 8,192, so
that a CPU core trains a model in minutes; values stand in the text behind their query, so that a generated text is one
of these texts; random words are none of the keys and values, so that no pair is written over by noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["END_ID", "KEYS", "SETTINGS", "VALUES", "VOCABULARY", "WORDS", "Batch", "Setting", "draw", "vocabulary"]

KEYS, VALUES, WORDS = 256, 256, 62
END_ID, UNKNOWN_ID = 0, 1
_FIRST_KEY, _FIRST_VALUE, _FIRST_WORD = 2, 2 + KEYS, 2 + KEYS + VALUES
VOCABULARY = 2 + KEYS + VALUES + WORDS
_POWER = 0.01

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Setting:
    """Texts of so many tokens with so many pairs."""

    length: int
    pairs: int

    def __post_init__(self) -> None:
        if self.pairs < 1 or 4 * self.pairs > self.length or self.pairs > min(KEYS, VALUES):
            raise ValueError(
                f"{self.pairs} pairs in {self.length} tokens; a pair takes 4 tokens, and there are {KEYS} keys"
            )


SETTINGS = (Setting(64, 4), Setting(64, 8), Setting(128, 16), Setting(128, 32), Setting(256, 64))
"""What models are trained on and tested on."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids `[B, L]`, and where the token that comes next is an answer `[B, L]`."""

    ids: Ids
    asked: npt.NDArray[np.bool_]


def vocabulary() -> dict[str, int]:
    """Ids by word."""
    words = ["<|end|>", "<|unknown|>"]
    words += [f"k{number}" for number in range(KEYS)]
    words += [f"v{number}" for number in range(VALUES)]
    words += [f"w{number}" for number in range(WORDS)]
    return {word: number for number, word in enumerate(words)}


def draw(setting: Setting, texts: int, seed: tuple[int, ...]) -> Batch:
    """Texts that follow from the seed."""
    draws = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    pairs, slots = setting.pairs, (setting.length - 2 * setting.pairs) // 2
    keys = _FIRST_KEY + _distinct(draws, texts, KEYS, pairs)
    values = _FIRST_VALUE + _distinct(draws, texts, VALUES, pairs)
    ids = draws.integers(_FIRST_WORD, VOCABULARY, (texts, setting.length))
    ids[:, 0 : 2 * pairs : 2], ids[:, 1 : 2 * pairs : 2] = keys, values
    # The n largest of log p + Gumbel noise are n draws without replacement.
    scores = (_POWER - 1) * np.log(np.arange(1, slots + 1)) + draws.gumbel(size=(texts, slots))
    places = 2 * pairs + 2 * np.argsort(-scores, axis=1)[:, :pairs]
    np.put_along_axis(ids, places, keys, axis=1)
    np.put_along_axis(ids, places + 1, values, axis=1)
    asked = np.zeros(ids.shape, np.bool_)
    np.put_along_axis(asked, places, True, axis=1)
    return Batch(ids, asked)


def _distinct(draws: np.random.Generator, texts: int, among: int, count: int) -> Ids:
    """Rows of different numbers below `among`."""
    found: Ids = np.argsort(draws.random((texts, among)), axis=1)[:, :count].astype(np.int64)
    return found
