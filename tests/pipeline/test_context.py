"""What passes read: the four modes by hand, and the questions that programs ask against brute force."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.pipeline.context import Context, Read, level_read, slot_of
from paceline.pipeline.topology import ContextMode
from paceline.pipeline.view import View


@pytest.mark.parametrize(
    ("mode", "levels"),
    [
        # Rows are steps 0..4 of four steps (4 is the clean pass), columns the distances 1..5.
        (ContextMode.clean, ["44444", "44444", "44444", "44444", "44444"]),
        (ContextMode.cascade, ["12344", "23444", "34444", "44444", "44444"]),
        (ContextMode.staggered, ["01234", "12344", "23444", "34444", "44444"]),
        (ContextMode.matched, ["00000", "11111", "22222", "33333", "44444"]),
    ],
)
def test_levels_of_the_four_modes(mode: ContextMode, levels: list[str]) -> None:
    for step, row in enumerate(levels):
        assert "".join(str(level_read(mode, 4, step, distance)) for distance in range(1, 6)) == row


def test_slots_are_diagonals_and_clean_is_serial() -> None:
    assert slot_of(ContextMode.cascade, 4, 7, 2) == 9
    assert [slot_of(ContextMode.clean, 4, 7, step) for step in (0, 4)] == [35, 39]
    assert slot_of(ContextMode.clean, 4, 8, 0) == 40


def test_reads_are_sinks_then_window() -> None:
    context = Context(ContextMode.cascade, steps=2, window=3, sinks=2, prompt=1, end=20)
    assert context.reads(10, 0) == (Read(0, 2), Read(1, 2), Read(7, 2), Read(8, 2), Read(9, 1))
    # A sink inside the window is read once, and a prompt frame is clean however near.
    assert context.reads(2, 0) == (Read(0, 2), Read(1, 1))
    assert context.reads(0, 2) == ()


def test_a_skipped_level_stands_for_the_next_one_computed() -> None:
    context = Context(ContextMode.cascade, steps=4, window=2, sinks=0, prompt=1, end=20)
    context.begin(5, 3)
    context.begin(6, 2)
    assert context.reads(7, 1) == (Read(5, 3), Read(6, 2))
    assert context.reads(7, 2) == (Read(5, 4), Read(6, 3))


def test_matched_leaves_out_a_frame_that_skipped_the_step() -> None:
    context = Context(ContextMode.matched, steps=4, window=2, sinks=0, prompt=1, end=20)
    context.begin(5, 3)
    assert context.reads(6, 1) == (Read(4, 1),)
    assert context.reads(6, 3) == (Read(4, 3), Read(5, 3))


def test_a_frame_begins_at_most_one_step_before_its_predecessor() -> None:
    context = Context(ContextMode.cascade, steps=4, window=2, sinks=0, prompt=1, end=20)
    context.begin(5, 3)
    assert context.earliest_step(6) == 2
    with pytest.raises(ValueError, match=r"frame 6 can't begin at step 1: it must be one of 2\.\.3"):
        context.begin(6, 1)
    with pytest.raises(ValueError, match="one of 2"):
        context.begin(6, 4)
    context.begin(6, 2)
    assert Context(ContextMode.clean, 4, 2, 0, 1, 20, {5: 3}).earliest_step(6) == 0


VIEW = View(6, 2, 3)


@st.composite
def contexts(draw: st.DrawFn, most_recalled: int = 0) -> Context:
    steps = draw(st.integers(1, 5))
    prompt = draw(st.integers(1, 4))
    end = prompt + draw(st.integers(1, 14))
    context = Context(
        draw(st.sampled_from(ContextMode)), steps, draw(st.integers(1, 6)), draw(st.integers(0, 4)), prompt, end,
        recall=draw(st.integers(min(most_recalled, 1), most_recalled)), view=VIEW,
    )  # fmt: skip
    for frame in range(prompt, end):
        context.begin(frame, max(draw(st.integers(0, steps - 1)), context.earliest_step(frame)))
    return context


@given(contexts())
def test_last_reader_and_needed_agree_with_the_reads(context: Context) -> None:
    for frame in range(context.end):
        lowest = context.steps if frame < context.prompt else context.first_step(frame)
        for level in range(lowest, context.steps + 1):
            for step in range(context.steps + 1):
                readers = [
                    reader
                    for reader in range(frame + 1, context.end)
                    if Read(frame, level) in context.reads(reader, step)
                ]
                assert context.last_reader(frame, level, step) == max(readers, default=-1)
                needed = context.needed(frame, level, (step,))
                assert needed == (bool(readers) and frame >= context.prompt)


@given(contexts())
def test_in_lock_step_every_read_was_computed_before(context: Context) -> None:
    for frame in range(context.prompt, context.end):
        for step in range(context.first_step(frame), context.steps + (context.mode is not ContextMode.matched)):
            slot = slot_of(context.mode, context.steps, frame, step)
            for read in context.reads(frame, step):
                if read.frame < context.prompt:
                    continue
                assert read.level >= context.first_step(read.frame)
                made = slot_of(context.mode, context.steps, read.frame, read.level)
                # In one slot the later step comes first.
                assert (made, -read.level) < (slot, -step) or made < slot


@given(contexts(most_recalled=3), st.randoms(use_true_random=False))
def test_what_is_recalled_has_come_and_is_still_there(context: Context, random: Random) -> None:
    poses = [(random.randrange(6), random.randrange(6)) for _ in range(context.end)]
    given_up: dict[int, int] = {}
    for frame in range(context.end):
        given_up |= {other: frame for other in context.observe(frame, poses[frame])}
        steps = [context.steps] if frame < context.prompt else range(context.first_step(frame), context.steps + 1)
        for step in steps:
            reads = context.reads(frame, step)
            assert [read.frame for read in reads] == sorted({read.frame for read in reads})
            for read in reads:
                assert context.last_reader(read.frame, read.level, step) >= frame
                assert frame < given_up.get(read.frame, context.end) or frame - read.frame <= context.window
                if read.frame in context.recalled(frame):
                    assert frame - read.frame > context.reach
                    assert read.level in context.recallable
                    slot = slot_of(context.mode, context.steps, frame, step)
                    if read.frame >= context.prompt:
                        assert slot_of(context.mode, context.steps, read.frame, read.level) < slot


@given(contexts(most_recalled=3), st.randoms(use_true_random=False))
def test_arrivals_bring_all_that_any_session_recalls(context: Context, random: Random) -> None:
    """For every step, what a pass reads has arrived for it or an earlier pass, whatever the poses are."""
    poses = [(random.randrange(6), random.randrange(6)) for _ in range(context.end)]
    for step in range(context.steps + 1):
        walk = Context(
            context.mode, context.steps, context.window, context.sinks, context.prompt, context.end,
            context.first_steps, context.recall, VIEW,
        )  # fmt: skip
        came: set[Read] = set()
        for frame in range(context.end):
            walk.observe(frame, poses[frame])
            came |= set(walk.arrivals(frame, step))
            assert set(walk.reads(frame, step)) <= came
            for read in walk.arrivals(frame, step):
                assert walk.last_reader(read.frame, read.level, step) >= frame


@given(contexts(most_recalled=3))
def test_nothing_comes_first_that_is_not_fresh(context: Context) -> None:
    for step in range(context.steps + 1):
        came: set[Read] = set()
        for frame in range(context.prompt, context.end):
            arrivals = [read for read in context.arrivals(frame, step) if read.frame >= context.prompt]
            fresh = [read for read in context.fresh(frame, step) if read.frame >= context.prompt]
            assert [read for read in arrivals if read not in came] == [read for read in fresh if read not in came]
            assert set(fresh) <= set(arrivals)
            assert [read.frame for read in fresh] == sorted({read.frame for read in fresh})
            assert len(fresh) <= context.steps + 3
            came.update(arrivals)


def test_without_poses_nothing_is_recalled_in_silence() -> None:
    blind = Context(ContextMode.clean, 1, 2, 1, 1, 20, recall=1)
    with pytest.raises(ValueError, match="what a view shows"):
        blind.observe(0, (0, 0))
    with pytest.raises(ValueError, match="call observe"):
        Context(ContextMode.clean, 1, 2, 1, 1, 20, recall=1, view=VIEW).reads(5, 0)
