"""Free slots against a set of numbers, and runs of neighbours in files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.tiers.free_slots import CleanCopies, Free, FreeRuns, FreeSlots

KINDS = [FreeSlots, FreeRuns, CleanCopies]
ACTIONS = st.lists(st.tuples(st.sampled_from(["take", "give", "retire"]), st.integers(0, 12)), max_size=60)


@pytest.mark.parametrize("kind", KINDS)
@given(count=st.integers(0, 40), actions=ACTIONS)
def test_every_slot_is_free_taken_or_retired(kind: type, count: int, actions: list[tuple[str, int]]) -> None:
    free: Free = kind(count)
    held: list[int] = []
    retired = 0
    for action, number in actions:
        if action == "take":
            left = count - len(held) - retired
            if number > left:
                with pytest.raises(LookupError, match=f"{left} of {count} slots are free, and {number} are asked for"):
                    free.take(number)
            else:
                held += free.take(number)
        elif held and action == "give":
            free.give(held.pop(number % len(held)))
        elif held:
            del held[number % len(held)]
            free.retire()
            retired += 1
        assert len(set(held)) == len(held) and all(0 <= slot < count for slot in held)
        assert not any(slot in free for slot in held)
        assert (len(free), free.taken, free.count) == (count - len(held) - retired, len(held), count)


def runs(slots: list[int]) -> int:
    return sum(after != before + 1 for before, after in zip([-2, *slots], slots, strict=False))


@given(count=st.integers(1, 60), gone=st.sets(st.integers(0, 59)), wanted=st.integers(1, 60))
def test_what_is_taken_together_lies_together_where_a_run_is_free(count: int, gone: set[int], wanted: int) -> None:
    free = FreeRuns(count)
    free.take(count)
    given_back = sorted(set(range(count)) - gone)
    for slot in given_back:
        free.give(slot)
    if wanted > len(given_back):
        return
    longest = max(len(run) for run in "".join("1" if slot in given_back else " " for slot in range(count)).split(" "))
    taken = free.take(wanted)
    assert len(taken) == wanted
    if wanted <= longest:
        assert runs(taken) == 1


def test_a_file_that_is_used_again_and_again_stays_in_runs() -> None:
    """Groups of 8 slots are freed in any order; new ones are still written in one piece each."""
    free = FreeRuns(800)
    groups = [free.take(8) for _ in range(90)]
    for turn in range(2000):
        for slot in groups.pop(turn * 7919 % len(groups)):
            free.give(slot)
        groups.append(free.take(8))
    assert sum(map(runs, groups)) == len(groups)


def test_arenas_give_what_was_freed_last() -> None:
    free = FreeSlots(4)
    assert free.take(3) == [0, 1, 2]
    free.give(1)
    assert free.take() == [1]
    free.grow(2)
    assert sorted(free.take(3)) == [3, 4, 5]
