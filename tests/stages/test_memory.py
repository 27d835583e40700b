"""Context memories: what a frame reads, rules as pure functions of states, and the memory of the ground."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paceline.stages.dit.config import DiTConfig, GroundMemoryConfig
from paceline.stages.dit.memory import GroundMemory
from paceline.stages.memory import MEMORIES, ContextMemory, State, Writes, make_memory
from paceline.stages.memory.frame_memory import FrameMemory
from paceline.stages.world_file import MemoryShape, WorldHeader

SHAPE = MemoryShape(heads=2, tokens=4, keys=6, values=3, read=(24,))
CPU = torch.device("cpu")
BUILT_IN = ["delta", "linear", "ttt_linear", "ttt_mlp"]


class Model:
    """Writes and asks for what the number of a frame says."""

    header = WorldHeader(1, 1, 2, 1, (1,), (1, 1), memory=SHAPE)
    device = CPU

    def memory_writes(self, latent: Tensor, condition: int) -> Writes:
        draw = torch.Generator().manual_seed(condition)
        keys = torch.nn.functional.normalize(torch.randn(2, 4, 6, generator=draw), dim=-1)
        return Writes(keys, latent.expand(2, 4, 3), torch.rand(2, 4, generator=draw))

    def memory_queries(self, condition: int) -> Tensor:
        return torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(condition + 1000))

    def memory_read(self, held: Tensor, condition: int) -> Tensor:
        return held.flatten()


def memory(rule: ContextMemory, written: int) -> FrameMemory:
    return FrameMemory(rule, Model(), written)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", BUILT_IN)
@pytest.mark.parametrize("written", [1, 3, 9])
def test_a_frame_reads_what_has_left_the_window_and_nothing_newer(kind: str, written: int) -> None:
    """However far ahead finished frames come: the state for frame T is that of frames 0 to T - `written`, in order."""
    rule, model = make_memory(kind, {}), Model()
    latents = [torch.full((1,), float(frame)) for frame in range(20)]
    late, early = memory(rule, written), memory(rule, written)
    for frame in range(20):
        early.finished(frame, latents[frame], frame)
    for frame in range(20):
        if frame >= written:
            late.finished(frame - written, latents[frame - written], frame - written)
        state = rule.empty(SHAPE, CPU)
        for old in range(frame - written + 1):
            state = rule.write(state, model.memory_writes(latents[old], old))
        wanted = model.memory_read(rule.attend(state, model.memory_queries(frame)), frame)
        assert torch.equal(late.read(frame, frame), wanted)
        assert torch.equal(early.read(frame, frame), wanted)
        assert late.waiting == 0
    assert (late.reads, late.writes) == (20, max(20 - written, 0))


def test_a_frame_that_is_not_finished_is_missed() -> None:
    held = memory(make_memory("delta", {}), 2)
    held.finished(0, torch.ones(1), 0)
    held.read(2, 2)
    with pytest.raises(ValueError, match="frame 3 reads the memory, and frame 1 is not finished"):
        held.read(3, 3)


@pytest.mark.parametrize("kind", BUILT_IN)
@settings(max_examples=30, deadline=None)
@given(seeds=st.lists(st.integers(0, 99), min_size=1, max_size=12), back=st.integers(0, 11), other=st.integers(0, 99))
def test_rollback_and_fork_are_as_if_nothing_had_been(kind: str, seeds: list[int], back: int, other: int) -> None:
    """States are values: an older one is still there, bit for bit, and two that part don't touch one another."""
    rule, model = make_memory(kind, {}), Model()

    def after(state: State, numbers: list[int]) -> State:
        for number in numbers:
            state = rule.write(state, model.memory_writes(torch.full((1,), float(number)), number))
            rule.attend(state, model.memory_queries(number))
        return state

    cut = min(back, len(seeds))
    kept = after(rule.empty(SHAPE, CPU), seeds[:cut])
    copies = [tensor.clone() for tensor in kept]
    first, second = after(kept, seeds[cut:]), after(kept, [other])
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, after(rule.empty(SHAPE, CPU), seeds), strict=True))
    whole = after(rule.empty(SHAPE, CPU), [*seeds[:cut], other])
    assert all(torch.equal(a, b) for a, b in zip(second, whole, strict=True))
    assert rule.state_bytes(SHAPE) == sum(tensor.numel() * tensor.element_size() for tensor in kept)


@pytest.mark.parametrize("kind", BUILT_IN)
def test_a_memory_that_holds_nothing_reads_as_zero_and_one_that_was_written_does_not(kind: str) -> None:
    rule, model = make_memory(kind, {}), Model()
    state, writes = rule.empty(SHAPE, CPU), model.memory_writes(torch.ones(1), 1)
    assert torch.equal(rule.attend(state, writes.keys), torch.zeros(2, 4, 3))
    for _ in range(2):
        state = rule.write(state, writes)
    held = rule.attend(state, writes.keys)
    # What was written again is closer to the values.
    assert float((held - writes.values).norm()) < float(writes.values.norm())


@pytest.mark.parametrize("kind", ["delta", "linear"])
def test_what_is_held_fades_by_the_decay_of_a_frame(kind: str) -> None:
    whole, faded = make_memory(kind, {"decay": 1.0}), make_memory(kind, {"decay": 0.5})
    writes = Model().memory_writes(torch.ones(1), 1)
    nothing = Writes(writes.keys, writes.values, torch.zeros_like(writes.strengths))
    state = whole.write(whole.empty(SHAPE, CPU), writes)
    torch.testing.assert_close(faded.write(state, nothing)[0], 0.5 * state[0])
    torch.testing.assert_close(whole.write(state, nothing)[0], state[0])


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("delta", {"decay": 0.0}, "above 0 and up to 1"),
        ("linear", {"decay": "x"}, "above 0 and up to 1"),
        ("ttt_linear", {"rate": 0}, "rate is 0; write a number above 0"),
        ("ttt_mlp", {"rate": True}, "rate is True; write a number above 0"),
        ("ttt_linear", {"batch": 0}, "batch is 0; write a whole number from 1 on"),
        ("ttt_mlp", {"hidden": 2.5}, "hidden is 2.5; write a whole number from 1 on"),
        ("delta", {"speed": 1}, "context memory delta: "),
        ("delt", {}, "there is no context memory 'delt'; there are delta"),
    ],
)
def test_what_no_memory_takes_is_an_error(kind: str, options: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_memory(kind, options)
    assert set(BUILT_IN) <= set(MEMORIES.names())


# -- the ground --------------------------------------------------------------------------------------------------------

CONFIG = DiTConfig(memory=GroundMemoryConfig())


@pytest.fixture(scope="module")
def ground() -> GroundMemory:
    torch.manual_seed(3)
    return GroundMemory(CONFIG)


def places(memory: GroundMemory, pose: tuple[int, int]) -> dict[tuple[int, int], tuple[int, int]]:
    """By cell of the ground (half tokens): its head and token in a view."""
    found = {}
    for token, (cell_y, cell_x) in itertools.product(range(64), itertools.product(range(2), range(2))):
        y, x = (pose[0] + 2 * (token // 8) + cell_y) % 48, (pose[1] + 2 * (token % 8) + cell_x) % 48
        found[y, x] = ((y % 2) * 2 + x % 2, token)
    return found


@settings(max_examples=40, deadline=None)
@given(first=st.tuples(st.integers(0, 47), st.integers(0, 47)), step=st.tuples(st.integers(-9, 9), st.integers(-9, 9)))
def test_a_cell_has_one_key_from_wherever_it_is_seen(
    ground: GroundMemory, first: tuple[int, int], step: tuple[int, int]
) -> None:
    second = ((first[0] + step[0]) % 48, (first[1] + step[1]) % 48)
    keys = [ground.keys(torch.tensor(pose)) for pose in (first, second)]
    torch.testing.assert_close(keys[0].norm(dim=-1), torch.ones(4, 64))
    here, there = places(ground, first), places(ground, second)
    for cell in here.keys() & there.keys():
        assert torch.equal(keys[0][here[cell]], keys[1][there[cell]])
    # Two cells of one head are told apart.
    overlap = keys[0] @ keys[0].mT - torch.eye(64)
    assert overlap.abs().max() < 0.1


@settings(max_examples=8, deadline=None)
@given(first=st.tuples(st.integers(0, 47), st.integers(0, 47)), step=st.tuples(st.integers(-7, 7), st.integers(-7, 7)))
def test_what_was_written_of_a_cell_is_read_from_another_pose(
    ground: GroundMemory, first: tuple[int, int], step: tuple[int, int]
) -> None:
    second = ((first[0] + step[0]) % 48, (first[1] + step[1]) % 48)
    rule = make_memory("delta", {})
    x = torch.rand(64, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        keys, values, _ = ground.writes(x, torch.tensor(first))
        # The state that holds all values exactly, without what tokens of one frame do to one another.
        state = torch.linalg.pinv(keys) @ values
        held = rule.attend((state,), ground.keys(torch.tensor(second)))
        read = ground.arrange(held, torch.tensor(second)).view(64, 4, 13)
    # The pixels of a cell are 2 x 2 in its corner of the token.
    pixels = x.view(8, 8, 4, 4, 3).permute(0, 2, 1, 3, 4).reshape(32, 32, 3)
    for y, x_ in itertools.product(range(0, 16, 3), range(0, 16, 3)):
        cell_y, cell_x = y + first[0] - second[0], x_ + first[1] - second[1]
        cell_y, cell_x = (cell_y + 24) % 48 - 24, (cell_x + 24) % 48 - 24
        if not (0 <= cell_y < 16 and 0 <= cell_x < 16):
            continue
        with torch.no_grad():
            code = ground.value(pixels[2 * y : 2 * y + 2, 2 * x_ : 2 * x_ + 2].reshape(12))
        wanted = torch.cat([torch.nn.functional.layer_norm(code, (12,)), torch.ones(1)])
        found = read[(cell_y // 2) * 8 + cell_x // 2, (cell_y % 2) * 2 + cell_x % 2]
        torch.testing.assert_close(found, wanted, atol=2e-3, rtol=0)


def test_a_configuration_that_no_memory_can_have_is_refused() -> None:
    for keys in (1, 3, 530):
        with pytest.raises(ValueError, match=r"memory\.keys"):
            DiTConfig(memory=GroundMemoryConfig(keys=keys)).check()
    DiTConfig(memory=GroundMemoryConfig(keys=528)).check()
