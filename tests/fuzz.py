"""Damage to bytes for readers to withstand: flips, cuts, splices, lengths and numbers, depth. All of it comes from a
seed, which a failure names."""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable, Sequence

__all__ = ["fuzz", "mutated"]

_NUMBERS = (
    0, 1, 2, 7, 127, 128, 255, 256, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1
)  # fmt: skip
_WORDS = (b"-1", b"1e400", b"1e5", b"0.5", b"null", b"true", b'""', b"[]", b"{}", b"NaN", b"-0", b"9" * 23)
_DIGITS = re.compile(rb"\d+")

Change = Callable[[random.Random, bytearray, bytes], None]


def _flip(source: random.Random, data: bytearray, other: bytes) -> None:
    if data:
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)


def _set(source: random.Random, data: bytearray, other: bytes) -> None:
    if data:
        data[source.randrange(len(data))] = source.choice(
            (0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x5B, 0x7B, source.randrange(256))
        )


def _cut(source: random.Random, data: bytearray, other: bytes) -> None:
    del data[source.randrange(len(data) + 1) :]


def _remove(source: random.Random, data: bytearray, other: bytes) -> None:
    begin = source.randrange(len(data) + 1)
    del data[begin : begin + source.choice((1, 2, 4, 8, 64, 1024))]


def _insert(source: random.Random, data: bytearray, other: bytes) -> None:
    at = source.randrange(len(data) + 1)
    data[at:at] = source.randbytes(source.choice((1, 2, 4, 8, 64)))


def _splice(source: random.Random, data: bytearray, other: bytes) -> None:
    begin, at = source.randrange(len(other) + 1), source.randrange(len(data) + 1)
    piece = other[begin : begin + source.choice((1, 4, 16, 256, 1 << 20))]
    data[at : at + len(piece) * source.randrange(2)] = piece


def _length(source: random.Random, data: bytearray, other: bytes) -> None:
    width = source.choice((1, 2, 4, 8))
    number = source.choice((*_NUMBERS, len(data), len(data) - 1, source.getrandbits(16))) & ((1 << 8 * width) - 1)
    at = source.choice((0, 8, 12, 16, source.randrange(len(data) + 1), source.randrange(len(data) + 1)))
    data[at : at + width] = number.to_bytes(width, source.choice(("little", "big")))


def _number(source: random.Random, data: bytearray, other: bytes) -> None:
    found = list(_DIGITS.finditer(data[: 1 << 16]))
    if found:
        spot = source.choice(found)
        data[spot.start() : spot.end()] = source.choice((*_WORDS, str(source.choice(_NUMBERS)).encode()))


def _deep(source: random.Random, data: bytearray, other: bytes) -> None:
    at = source.choice((0, source.randrange(len(data) + 1)))
    depth = source.choice((10, 200, 1100, 20_000))
    data[at:at] = source.choice((b"[", b'{"a":', b"\x91", b"\x81\xa1a")) * depth


_CHANGES: tuple[Change, ...] = (
    _flip, _flip, _flip, _set, _set, _cut, _remove, _insert, _splice, _length, _length, _number, _number
)  # fmt: skip


def mutated(source: random.Random, samples: Sequence[bytes]) -> bytes:
    """One of the samples with one to four changes."""
    data = bytearray(source.choice(samples))
    for _ in range(source.choice((1, 1, 1, 2, 4))):
        # Depth is long, so it is rare.
        change = _deep if source.random() < 0.01 else source.choice(_CHANGES)
        change(source, data, source.choice(samples))
    return bytes(data)


def fuzz(
    read: Callable[[bytes], object],
    samples: Sequence[bytes],
    errors: type[BaseException] | tuple[type[BaseException], ...],
    count: int,
    seed: int = 20260,
    wrap: Callable[[bytes], bytes] | None = None,
    bodies: Sequence[bytes] = (),
) -> int:
    """Let `read` read `count` damaged samples; it may return, or raise one of `errors`. Every second one is a damaged
    body that `wrap` puts a right length and checksum around, where that is given: else checksums catch nearly all.
    Returns how many were refused.

    Raises `AssertionError` with the seed and the bytes for anything else.
    """
    refused = 0
    source = random.Random()
    for sample in samples:
        read(sample)  # whole ones are read
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(count):
            source.seed(seed * 1_000_003 + number)
            sealed = wrap is not None and number % 2
            data = mutated(source, bodies if sealed else samples)
            data = wrap(data) if wrap is not None and sealed else data
            try:
                read(data)
            except errors as error:
                assert str(error), "an error without a message"
                refused += 1
            except BaseException as error:
                raise AssertionError(
                    f"seed {seed}, mutation {number}: {type(error).__name__}: {error}; bytes {data[:400]!r}"
                ) from error
    return refused
