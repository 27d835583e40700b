"""Sizes in bytes, read and written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.pipeline.strict_model import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("4 KiB", 4096),
        ("64MiB", 64 * 2**20),
        ("1.5GB", 1_500_000_000),
        ("2gib", 2 * 2**30),
        ("1TiB", 2**40),
        ("7b", 7),
        ("0.4", 0),
        (" 1kb ", 1000),
    ],
)
def test_sizes_that_people_write(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-5MB", "5 apples", "1e3", "1.KiB", "5 5"])
def test_text_that_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a size; write bytes or a unit, such as 4096, 64KiB, 1.5MiB or 2GB"):
        parse_size(text)


def test_huge_sizes_stay_exact() -> None:
    assert parse_size("9" * 400) == int("9" * 400)


@pytest.mark.parametrize("value", [5, True, None, 1.5, [1]])
def test_what_is_no_text_is_left_to_its_own_check(value: object) -> None:
    assert parse_size(value) is value


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1000 B"),
        (1024, "1 KiB"),
        (1_048_570, "1 MiB"),
        (200_704, "196 KiB"),
        (2**50, "1.02e+03 TiB"),
    ],
)
def test_written_sizes(size: float, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 2**49))
def test_a_written_size_reads_back_within_half_a_percent(size: int) -> None:
    back = parse_size(format_size(size))
    assert isinstance(back, int)
    assert abs(back - size) <= 0.005 * size + 1
