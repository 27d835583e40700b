"""Every reader of bytes that we wrote, on damaged ones: it reads them or raises an error of its own, with a message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from paceline.pipeline.load import check_topology
from tests.fuzz import fuzz
from tests.harness import ROOT
from tests.readers import READERS, Reader, file_reader, leave

FEW, MANY = 2_000, 100_000


@pytest.fixture(autouse=True)
def left() -> Iterator[None]:
    yield
    leave()


def check(make: Callable[[Path], Reader], folder: Path, count: int, seed: int) -> None:
    reader = make(folder)
    count = int(count * reader.share)
    refused = fuzz(reader.read, reader.samples, reader.errors, count, seed, reader.wrap, reader.bodies)
    # A reader that refuses nothing is not fuzzed.
    assert reader.errors == () or refused > count // 4


@pytest.mark.parametrize("make", READERS, ids=lambda make: make.__name__)
def test_damaged_bytes_raise_nothing_but_errors_of_our_own(make: Callable[[Path], Reader], tmp_path: Path) -> None:
    check(make, tmp_path, FEW, 1)


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
@pytest.mark.parametrize("make", READERS, ids=lambda make: make.__name__)
def test_many_damaged_bytes_raise_nothing_but_errors_of_our_own(make: Callable[[Path], Reader], tmp_path: Path) -> None:
    check(make, tmp_path, MANY, 2)


def test_a_damaged_topology_is_a_list_of_problems(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    sample = (ROOT / "topologies" / "world-1.yaml").read_bytes()

    def read(file: Path) -> None:
        topology, problems = check_topology(file)
        assert (topology is None) == bool(problems) and all(str(problem) for problem in problems)

    assert fuzz(file_reader(path, read), [sample], (), 150, 3) == 0


def test_the_mutator_finds_what_is_hidden() -> None:
    """A reader that believes a length, one that believes a number, and one that believes depth."""

    def length(data: bytes) -> None:
        if len(data) >= 4 and int.from_bytes(data[:4], "little") > 1 << 30:
            raise MemoryError("believed a length")

    def number(data: bytes) -> None:
        if b"-1" in data:
            raise IndexError("believed a number")

    def deep(data: bytes) -> None:
        if data.count(b"[") > 1000:
            raise RecursionError("believed depth")

    for read in (length, number, deep):
        with pytest.raises(AssertionError, match=r"seed 5, mutation \d+: \w+Error: believed"):
            fuzz(read, [b'\x04\x00\x00\x00{"a": 12}'], (ValueError,), 3000, 5)
