"""Going back, going on from a checkpoint, forking: as if what was left had never been, bit for bit, for every rule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import zoo.world
from paceline.stages.dit.config import FrameCondition
from paceline.stages.dit.model import DiTModel
from paceline.stages.dit.network import load_dit
from paceline.stages.dit.patches import patchify
from paceline.stages.memory import make_memory
from paceline.stages.memory.frame_memory import FrameMemory
from tests.stages.test_memory import BUILT_IN, Model
from zoo.world.rollout import record

KINDS = pytest.mark.parametrize("kind", BUILT_IN)


def made(kind: str, written: int, rollback: int = 0) -> FrameMemory:
    return FrameMemory(make_memory(kind, {}), Model(), written, rollback)  # type: ignore[arg-type]


class Session:
    """Plays frames on a memory: each is finished `ahead` frames before it has to be. `pasts` says by frame which of
    several latents it has."""

    def __init__(self, memory: FrameMemory, ahead: int = 0) -> None:
        self.memory, self.ahead = memory, ahead
        self.done = self.next = 0

    def play(self, pasts: Sequence[int]) -> list[Tensor]:
        """What the frames read that have not been read yet."""
        reads = []
        for frame in range(self.next, len(pasts)):
            while self.done < min(frame + self.ahead, len(pasts)):
                value = ((7 * pasts[self.done] + self.done) % 11) / 11 + 0.1 * pasts[self.done]
                self.memory.finished(self.done, torch.full((1,), value), self.done)
                self.done += 1
            reads.append(self.memory.read(frame, frame))
        self.next = len(pasts)
        return reads

    def at(self, memory: FrameMemory) -> Session:
        """Another memory from here on."""
        other = Session(memory, self.ahead)
        other.done, other.next = self.done, self.next
        return other


def bits(memory: FrameMemory) -> list[Tensor]:
    """All numbers of a memory: what waits, and its state."""
    point = memory.checkpoint()
    number = [torch.tensor([point.held, *(each.frame for each in point.waiting)], dtype=torch.float32)]
    return [*number, *(each.latent for each in point.waiting), *point.state]


def equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(some) == len(others) and all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@KINDS
@settings(max_examples=25, deadline=None)
@given(
    written=st.integers(1, 5), rollback=st.integers(0, 6), ahead=st.integers(0, 3), count=st.integers(1, 24),
    data=st.data(),
)  # fmt: skip
def test_a_memory_that_went_back_was_never_there(
    kind: str, written: int, rollback: int, ahead: int, count: int, data: st.DataObject
) -> None:
    session = Session(made(kind, written, rollback), ahead)
    pasts = [0] * count
    session.play(pasts)
    for past in (1, 2):  # twice, as what was taken back is taken back again
        # The last frame that was read can be taken back always.
        frame = data.draw(st.integers(max(len(pasts) - 1 - rollback, 0), len(pasts)))
        session.memory.rollback(frame)
        session.next, session.done = frame, min(session.done, frame)
        pasts = pasts[:frame] + [past] * 9
        reads = session.play(pasts)
        plain = Session(made(kind, written), ahead)
        assert equal(reads, plain.play(pasts)[frame:])
        assert equal(bits(session.memory), bits(plain.memory))


@KINDS
@settings(max_examples=25, deadline=None)
@given(
    written=st.integers(1, 5), rollback=st.integers(0, 6), ahead=st.integers(0, 3), count=st.integers(0, 24),
    data=st.data(),
)  # fmt: skip
def test_a_fork_and_a_restored_checkpoint_go_on_alone(
    kind: str, written: int, rollback: int, ahead: int, count: int, data: st.DataObject
) -> None:
    session = Session(made(kind, written, rollback), ahead)
    session.play([0] * count)
    point = session.memory.checkpoint()
    kept = [part.clone() for part in bits(session.memory)]
    fork, restored = session.at(session.memory.fork()), session.at(made(kind, written, rollback))
    pasts = [[0] * session.done + [past] * 9 for past in (1, 2, 3)]
    reads = [each.play(past) for each, past in zip((session, fork), pasts, strict=False)]
    # Also of a memory that has been somewhere else.
    Session(restored.memory).play([4] * data.draw(st.integers(0, 9)))
    restored.memory.restore(point)
    assert equal(bits(restored.memory), kept)
    reads.append(restored.play(pasts[2]))
    for each, past, found in zip((session, fork, restored), pasts, reads, strict=True):
        plain = Session(made(kind, written), ahead)
        assert equal(found, plain.play(past)[count:])
        assert equal(bits(each.memory), bits(plain.memory))
        assert (each.memory.reads, each.memory.writes) == (plain.memory.reads, plain.memory.writes)
    # The fork can go back to before it was one.
    frame = data.draw(st.integers(max(fork.next - 1 - rollback, 0), fork.next))
    fork.memory.rollback(frame)
    fork.next, fork.done = frame, min(fork.done, frame)
    again = (pasts[1][:frame] + [5] * 40)[: frame + 9]
    plain = Session(made(kind, written), ahead)
    assert equal(fork.play(again), plain.play(again)[frame:])
    session.memory.reset()
    assert equal(bits(session.memory), bits(made(kind, written)))
    assert (session.memory.reads, session.memory.writes) == (0, 0)


@KINDS
def test_what_is_kept_does_not_grow(kind: str) -> None:
    session = Session(made(kind, 3, rollback=5), ahead=2)
    sizes = []
    for count in range(1, 200):
        session.play([0] * count)
        sizes.append(session.memory.nbytes)
    assert max(sizes[20:100]) == max(sizes[100:]) <= 4 * session.memory.state_bytes + 4 * (2 * 5 + 3 + 2)
    plain = Session(made(kind, 3), ahead=2)
    plain.play([0] * 50)
    assert plain.memory.nbytes <= plain.memory.state_bytes + 4 * (3 + 2)


def test_what_was_not_kept_is_an_error() -> None:
    session = Session(made("delta", 3, rollback=4))
    session.play([0] * 30)
    before = bits(session.memory)
    with pytest.raises(ValueError, match=r"can't go back to frame 9: it can to frame \d+ and later ones"):
        session.memory.rollback(9)
    other = FrameMemory(make_memory("ttt_mlp", {}), Model(), 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="restore it with the rule, the options and the model"):
        session.memory.restore(other.checkpoint())
    assert equal(bits(session.memory), before)
    with pytest.raises(ValueError, match="frame 28 reads the memory, which holds newer frames"):
        session.memory.read(28, 28)
    with pytest.raises(ValueError, match="give it a method memory_familiarity"):
        session.memory.holds(3)


def test_places_that_were_seen_are_known_and_others_are_not() -> None:
    """The shipped weights, on a true walk: the value of each cell of the ground in the picture's rows and columns."""
    model = DiTModel(load_dit(Path(zoo.world.__file__).parents[1] / "world-memory" / "weights.safetensors"))
    walk = record([31], 40)
    tokens = patchify(torch.from_numpy(walk.frames))[:, 0]
    conditions = [FrameCondition(0, 0, *walk.pose[frame, 0].tolist()) for frame in range(40)]
    memory = FrameMemory(make_memory("delta", {}), model, 1)
    assert float(memory.holds(conditions[0]).abs().max()) == 0
    with torch.inference_mode():
        for frame in range(30):
            memory.read(frame, conditions[frame])
            memory.finished(frame, tokens[frame], conditions[frame])
    seen = torch.zeros(48, 48, dtype=torch.bool)
    for condition in conditions[:29]:
        seen[cells(condition)] = True
    known, unknown, ground = [], [], torch.full((48, 48), torch.nan)
    for y in range(0, 48, 5):
        for x in range(0, 48, 5):
            there = FrameCondition(0, 0, y, x)
            held = memory.holds(there)
            assert held.shape == (16, 16)
            # A cell has one value from wherever it is seen.
            before = ground[cells(there)]
            torch.testing.assert_close(before.where(~before.isnan(), held), held, atol=1e-4, rtol=0)
            ground[cells(there)] = held
            known.append(held[seen[cells(there)]])
            unknown.append(held[~seen[cells(there)]])
    # Keys have no constant part.
    assert abs(float(ground.mean())) < 1e-3
    told, silent = torch.cat(known), torch.cat(unknown)
    assert float((told > 0.5).float().mean()) > 0.75, told.quantile(torch.tensor([0.1, 0.25, 0.5]))
    assert float((silent < 0.5).float().mean()) > 0.9, silent.quantile(torch.tensor([0.5, 0.75, 0.9]))


def cells(condition: FrameCondition) -> tuple[Tensor, Tensor]:
    """Rows and columns, on a ground of 48 x 48 cells, that a view shows."""
    at = torch.arange(16)
    return ((condition.pose_y + at) % 48)[:, None], ((condition.pose_x + at) % 48)[None, :]
