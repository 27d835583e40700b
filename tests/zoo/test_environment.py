"""The glyph world is what it says it is, whatever the seed and the walk."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.world.environment import (
    ATLAS,
    FULL,
    LEFT,
    PAINT,
    RIGHT,
    RING,
    STAY,
    TORUS,
    WALK,
    GlyphWorld,
    Worlds,
    glyphs_in_view,
    occluded_pixels,
)
from zoo.world.evaluate import nearest_glyphs

seeds = st.integers(0, 2**62)
walks = st.lists(st.sampled_from([STAY, WALK, WALK, WALK, LEFT, RIGHT, PAINT]), max_size=40)
quick = settings(max_examples=25, deadline=None)


def play(world: GlyphWorld, actions: list[int]) -> None:
    for action in actions:
        world.step(action)


def test_glyphs_are_distinct_even_by_halves() -> None:
    for half in (ATLAS[:, :2], ATLAS[:, 2:], ATLAS[:, :, :2], ATLAS[:, :, 2:]):
        assert len({tile.tobytes() for tile in half}) == len(ATLAS)


@quick
@given(seeds, walks)
def test_a_lap_of_the_torus_shows_the_same_picture(seed: int, actions: list[int]) -> None:
    world = GlyphWorld(seed)
    play(world, actions)
    before, pose = world.frame(), world.worlds.pose
    play(world, [WALK] * TORUS)  # the balls' period is a lap too
    assert np.array_equal(world.frame(), before)
    assert np.array_equal(world.worlds.pose, pose)


@quick
@given(seeds, walks, st.integers(1, 30))
def test_there_and_back_shows_the_same_tiles(seed: int, actions: list[int], far: int) -> None:
    world = GlyphWorld(seed)
    play(world, actions)
    pose = world.worlds.pose
    glyph, _, clear, _ = nearest_glyphs(world.frame()[None], pose)
    play(world, [WALK] * far + [LEFT, LEFT] + [WALK] * far + [RIGHT, RIGHT])
    assert np.array_equal(world.worlds.pose, pose)
    again, _, clear_again, _ = nearest_glyphs(world.frame()[None], pose)
    both = clear & clear_again
    assert both.sum() > 30
    assert np.array_equal(glyph[both], again[both])


@quick
@given(seeds, walks)
def test_pose_and_picture_agree(seed: int, actions: list[int]) -> None:
    world = GlyphWorld(seed)
    play(world, actions)
    w = world.worlds
    glyph, place, clear, error = nearest_glyphs(world.frame()[None], w.pose)
    _, pixel, inside = glyphs_in_view(w.pose)
    hidden = occluded_pixels(w.balls, w.agent, w.heading)[0]
    seen = 0
    for i, j in zip(*np.nonzero(inside[0]), strict=True):
        y, x = pixel[0, i, j]
        if hidden[y : y + 4, x : x + 4].any():
            continue
        assert clear[0, i, j]
        assert glyph[0, i, j] == w.ground[0, place[0, i, j, 0], place[0, i, j, 1]]
        assert error[0, i, j] == 0
        seen += 1
    assert seen >= 20


@quick
@given(seeds, walks)
def test_paint_turns_a_ring_full_and_stays(seed: int, actions: list[int]) -> None:
    world = GlyphWorld(seed)
    play(world, actions)
    w = world.worlds
    y, x = w.agent[0] // 2
    before = w.ground.copy()
    world.step(PAINT)
    expected = before.copy()
    if before[0, y, x] % 5 == RING:
        expected[0, y, x] += FULL - RING
    assert np.array_equal(w.ground, expected)
    play(world, [WALK] * 7 + [LEFT, WALK, STAY])
    assert np.array_equal(w.ground, expected)


def test_only_painting_makes_full_tiles() -> None:
    assert not (Worlds(list(range(20))).ground % 5 == FULL).any()


@quick
@given(seeds)
def test_a_world_is_a_function_of_its_seed(seed: int) -> None:
    one, other = GlyphWorld(seed), GlyphWorld(seed)
    together = Worlds([seed + 1, seed])
    frames = []
    for _ in range(150):  # past the first block of policy draws
        actions = together.policy_actions()
        assert one.policy_action() == other.policy_action() == actions[1]
        together.step(actions)
        frames.append(one.step(int(actions[1])))
        assert np.array_equal(frames[-1], other.step(int(actions[1])))
    assert np.array_equal(together.frames()[1], frames[-1])
    assert not np.array_equal(GlyphWorld(seed + 1).frame(), GlyphWorld(seed).frame())


def test_the_agent_stands_where_its_condition_says() -> None:
    world = GlyphWorld(5)
    for turn in (STAY, LEFT, LEFT, LEFT):
        frame = world.step(turn)
        condition = world.condition()
        y, x = (2 * (world.worlds.agent[0] - (condition.pose_y, condition.pose_x))) % (2 * TORUS)
        assert frame[y, x].tolist() == [255, 255, 255]
        assert frame[y, x + 1].tolist() == [0, 0, 0]


def test_prompt_begins_with_the_world_as_it_stands() -> None:
    prompt = GlyphWorld(9).prompt(4)
    assert len(prompt) == 4
    assert np.array_equal(prompt[0][1], GlyphWorld(9).frame())
    assert prompt[0][0] == GlyphWorld(9).condition()


def test_unknown_action_is_refused() -> None:
    with pytest.raises(ValueError, match="actions are 0"):
        GlyphWorld(0).step(5)
