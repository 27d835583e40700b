"""Recall against brute force: what a view shows, what is chosen, what is given up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.pipeline.recall import Recall, shown
from paceline.pipeline.view import Pose, View

TORUS = 9
views = st.builds(View, st.just(TORUS), st.integers(1, 4), st.integers(1, 4))
poses = st.tuples(st.integers(0, TORUS - 1), st.integers(0, TORUS - 1))


def cells(view: View, pose: Pose) -> set[Pose]:
    """The ground that a view shows."""
    return {
        ((pose[0] + y) % view.torus, (pose[1] + x) % view.torus) for y in range(view.height) for x in range(view.width)
    }


@given(views, poses, poses)
def test_shown_cells_are_the_ground_that_two_views_share(view: View, own: Pose, other: Pose) -> None:
    found = {
        ((own[0] + index // view.width) % TORUS, (own[1] + index % view.width) % TORUS)
        for index in shown(view, own, other)
    }
    assert found == cells(view, own) & cells(view, other)


def chosen_by_hand(
    walk: list[Pose], frame: int, count: int, window: int, sinks: int, reach: int, view: View
) -> tuple[int, ...]:
    """The rule, over all frames and sets of cells."""
    own = cells(view, walk[frame])
    older = [f for f in range(sinks, frame - reach) if walk[f] not in walk[f + 1 : max(frame - reach, 0)]]
    near = sorted({*range(min(sinks, frame)), *range(max(frame - window, 0), frame)})
    chosen: list[int] = []

    def worth(frame: int) -> int:
        lookers = [
            sum(cell in cells(view, walk[f]) for f in [*near, *chosen]) for cell in own & cells(view, walk[frame])
        ]
        return sum((16, 4, 1)[count] for count in lookers if count < 3)

    while len(chosen) < count:
        rest = [f for f in older if f not in chosen and worth(f)]
        if not rest:
            break
        chosen.append(max(rest, key=lambda f: (worth(f), len(own & cells(view, walk[f])), f)))
    return tuple(sorted(chosen))


@given(
    walk=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=30),
    count=st.integers(1, 4),
    window=st.integers(1, 4),
    sinks=st.integers(0, 3),
    more=st.integers(0, 3),
    view=views,
)
def test_the_choice_is_the_rule(walk: list[Pose], count: int, window: int, sinks: int, more: int, view: View) -> None:
    reach = window + more
    recall = Recall(count, window, sinks, reach, 3, view)
    gone: set[int] = set()
    for frame, pose in enumerate(walk):
        gone |= set(recall.observe(frame, pose))
        found = recall.frames(frame)
        assert found == chosen_by_hand(walk, frame, count, window, sinks, reach, view)
        assert not gone & set(found), "a frame was recalled after it had been given up"
        assert all(sinks <= other < frame - reach for other in found)
    # What was not given up are candidates: one for each pose.
    kept = set(range(sinks, max(len(walk) - 1 - reach, 0))) - gone
    assert len({walk[f] for f in kept}) == len(kept)


def test_a_revisited_place_is_recalled_and_the_newest_look_at_it_counts() -> None:
    view = View(48, 16, 16)
    recall = Recall(1, 2, 1, 2, 4, view)
    walk = [(0, 0), (20, 20), (20, 22), (20, 20), (0, 30), (2, 30), (4, 30), (20, 21)]
    gone = [recall.observe(frame, pose) for frame, pose in enumerate(walk)]
    assert gone[:6] == [()] * 6
    # Frame 3 looks from where frame 1 did; from frame 6 on it is old enough to take its place.
    assert gone[6] == (1,)
    assert recall.frames(6) == ()
    assert recall.frames(7) == (3,)
    with pytest.raises(KeyError):
        recall.frames(3)


def test_frames_come_in_order() -> None:
    recall = Recall(1, 2, 1, 2, 4, View(48, 16, 16))
    recall.observe(0, (0, 0))
    with pytest.raises(ValueError, match="frame 2 was seen by a recall that expected frame 1"):
        recall.observe(2, (0, 0))
