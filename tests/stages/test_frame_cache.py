"""The frame cache against plain dicts: what was put is read back bit for bit until its last slot is over."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paceline.pipeline.context import Read
from paceline.stages.dit.config import FrameCondition
from paceline.stages.dit.model import DiTModel
from paceline.stages.frame_cache import FrameCache

LAYERS = 2


def kv(frame: int, level: int, layer: int) -> tuple[Tensor, Tensor]:
    """Keys and values `[H, N, D]` that no other frame, level or layer has."""
    value = float(100 * frame + 10 * level + layer)
    keys = torch.full((2, 3, 4), value)
    return keys, keys + 0.5


def fill(cache: FrameCache, frame: int, level: int) -> None:
    for layer in range(LAYERS):
        cache.put(frame, level, layer, *kv(frame, level, layer))


def condition(frame: int) -> FrameCondition:
    return FrameCondition(action=0, heading=0, pose_y=frame % 48, pose_x=3 * frame % 48)


@settings(max_examples=100, deadline=None)
@given(
    entries=st.dictionaries(
        st.tuples(st.integers(0, 9), st.integers(0, 2)), st.lists(st.integers(0, 12), max_size=3), min_size=1
    ),
    slots=st.lists(st.integers(0, 14), min_size=1, max_size=6),
)
def test_kv_is_held_until_its_last_slot_is_over(
    model: DiTModel, entries: dict[tuple[int, int], list[int]], slots: list[int]
) -> None:
    """`entries`: the slots that `keep` names for each frame and level, one after another; the last one counts."""
    cache = FrameCache(model)
    for (frame, level), ends in entries.items():
        fill(cache, frame, level)
        for until in ends:
            cache.keep(frame, level, until)
    for slot in sorted(slots):
        cache.advance(slot, 0, 0)
        held = {entry for entry, ends in entries.items() if not ends or ends[-1] >= slot}
        assert cache.counts["kv"] == cache.counts["layers"] == len(held)
        assert cache.nbytes == len(held) * LAYERS * 2 * 24 * 4
        for frame, level in entries:
            for layer in range(LAYERS):
                if (frame, level) in held:
                    found = cache.get(frame, level, layer)
                    assert all(torch.equal(*pair) for pair in zip(found, kv(frame, level, layer), strict=True))
                else:
                    with pytest.raises(KeyError):
                        cache.get(frame, level, layer)


def test_a_context_has_the_order_of_its_reads(model: DiTModel) -> None:
    cache = FrameCache(model)
    for frame in range(3):
        for level in range(2):
            fill(cache, frame, level)
    reads = (Read(2, 0), Read(0, 1), Read(1, 0))
    for layer in range(LAYERS):
        found = cache.context(reads, layer)
        for read, pair in zip(reads, found, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(pair, kv(read.frame, read.level, layer), strict=True))


@pytest.mark.parametrize("layers", [[1], [0, 0], [0, 1, 3]])
def test_layers_come_in_order(model: DiTModel, layers: list[int]) -> None:
    cache = FrameCache(model)
    for layer in layers[:-1]:
        cache.put(0, 0, layer, *kv(0, 0, layer))
    with pytest.raises(ValueError, match=f"layer {layers[-1]} came, {len(layers) - 1} was next"):
        cache.put(0, 0, layers[-1], *kv(0, 0, 0))


def test_hashes_are_of_what_was_computed_here_from_a_frame_on(model: DiTModel) -> None:
    cache = FrameCache(model, hash_from=1)
    expected = {level: hashlib.sha256() for level in range(2)}
    for frame in range(3):
        for level, digest in expected.items():
            for layer in range(LAYERS):
                own = frame != 2
                pair = kv(frame, level, layer)
                cache.put(frame, level, layer, *pair, own=own)
                if frame == 1:
                    for tensor in pair:
                        digest.update(tensor.numpy().tobytes())
    assert cache.digests() == {level: digest.hexdigest() for level, digest in expected.items()}
    cache.fail()
    assert cache.digests() == {}


def test_rotations_are_those_of_the_pose(model: DiTModel) -> None:
    cache = FrameCache(model)
    for frame in range(4):
        cache.place(frame, condition(frame))
        pose = condition(frame)
        expected = model.network.space_rotation(torch.tensor(pose.pose_y), torch.tensor(pose.pose_x))
        assert torch.equal(cache.rotation(frame), expected)


def test_its_tables_do_not_grow_with_the_session(model: DiTModel) -> None:
    """A window of four frames and one sink over sessions of two lengths: the same tables."""
    peaks = []
    for frames in (400, 1600):
        cache, peak = FrameCache(model), dict.fromkeys(FrameCache(model).counts, 0)
        for frame in range(frames):
            cache.place(frame, condition(frame))
            cache.rotation(frame)
            fill(cache, frame, 0)
            if frame:
                cache.keep(frame, 0, frame + 4)
            cache.advance(frame, frame - 4, 1)
            peak = {name: max(peak[name], count) for name, count in cache.counts.items()}
        peaks.append(peak)
    assert peaks[0] == peaks[1]
    assert peaks[0]["kv"] <= 6
