"""A session that loses KV: what is shown of it is right up to where it ends, and no other session notices."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from paceline.pipeline.topology import ContextMode, Topology
from paceline.runtime.result import TIMES_FILE, FrameTime
from paceline.runtime.serial import run_serial
from paceline.runtime.spec import RunSpec
from paceline.runtime.spool import read_spool
from paceline.stages.dit.model import DiTModel
from paceline.stages.failed import failure_in, failure_text, with_failure
from paceline.tiers import store_file
from paceline.tiers.errors import BlockLost, TierError, TierFull
from paceline.tiers.manager import TierManager
from paceline.tiers.settings import Tier
from tests.faults.tiers import Damage
from tests.stages.lockstep import Lockstep, frames_of
from tests.stages.test_denoise import build
from tests.stages.test_frame_tiers import SMALL, manager_for

FRAMES = 14
FRAME_BYTES = 32 * 32 * 3
PARTITIONS = [[[0], [1, 2]], [[0], [1], [2]], [[0, 1], [2]], [[0, 1, 2]]]


@dataclass
class Played:
    """A run of two sessions, stage by stage, over one disk."""

    topology: Topology
    model: DiTModel
    folder: Path
    order: int
    joint: bool = False
    hbm: float = 1.0
    hurt: tuple[str, int, str] | None = None
    """A stage, a step of its manager, and what happens to the disk then: `flip` (session 0 alone) or `cut`"""
    managers: dict[str, TierManager] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        net = self.net = Lockstep(
            self.topology, self.model, FRAMES, 2, self.folder, self._tiers, self.folder, self.joint
        )
        net.run(random.Random(self.order))
        assert not net.box, "items were sent that nobody took"
        self.shown = [frames_of(self.folder, session) for session in range(2)]
        self.failed = [net.sessions[session].result().failed for session in range(2)]
        self.kv = net.kv()

    def _tiers(self, stage: str) -> TierManager:
        if stage not in self.managers:
            manager = self.managers[stage] = manager_for(self.hbm, 0, self.folder / "nvme", disk=200)
            if self.hurt is not None and self.hurt[0] == stage:
                _, after, how = self.hurt
                Damage(manager, 0, after) if how == "flip" else Cut(manager, after)
        return self.managers[stage]

    def close(self) -> None:
        for manager in self.managers.values():
            manager.close_all()
        assert not list((self.folder / "nvme").glob("*")), "a file of blocks was left behind"


class Cut:
    """Cuts the file of a manager off at one of its steps, for all sessions."""

    def __init__(self, manager: TierManager, after: int) -> None:
        self._manager, self._after, self._step = manager, after, manager.step
        setattr(manager, "step", self.step)  # noqa: B010

    def step(self) -> None:
        self._step()
        if self._manager.now == self._after and self._manager.storage.store is not None:
            os.truncate(self._manager.storage.store.open_path, 4096)


def check_shown(played: Played, session: int, right: bytes) -> None:
    """What was shown is the beginning of what is right, and all of it where the session came through."""
    shown = played.shown[session]
    result = played.net.sessions[session].result()
    assert len(shown) == result.frames * FRAME_BYTES
    assert shown == right[: len(shown)], f"a frame of {session} is wrong"
    assert (result.failed is None) == (len(shown) == len(right))
    times = read_spool(played.folder / TIMES_FILE.format(session), FrameTime)
    assert [time.frame for time in times] == list(range(result.frames))


def fails_alone(
    mode: ContextMode, partition: list[list[int]], how: str, pick: int, after: int, damage: str, order: int,
    model: DiTModel, weights: Path,
) -> None:  # fmt: skip
    """In every context mode, with steps on stages of their own, as rows of one forward, and sessions as rows of one."""
    if how == "batched":
        partition = [[0, 1, 2]]
    schedule = "batched" if how == "batched" else "wavefront"
    topology = build(weights, mode.value, partition, schedule, window=2, recall=2)
    stages = [name for name, stage in topology.stages.items() if stage.kind == "denoise"]
    stage = stages[pick % len(stages)]
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        hurt = Played(topology, model, folder / "hurt", order, how == "joint", hurt=(stage, after, damage))
        if how == "wavefront":
            serial = run_serial(RunSpec(topology, FRAMES, 2, 0, out=folder, kv_hash=True), folder)
            right, kv = [frames_of(folder, session) for session in range(2)], serial.ranks[0].kv_sha256
        else:  # forwards of several rows round otherwise, and the same in both
            whole = Played(topology, model, folder / "whole", order, how == "joint")
            right, kv = whole.shown, whole.kv
            assert whole.failed == [None, None]
            assert whole.net.kv_metas == []
            whole.close()
        for session in range(2):
            check_shown(hurt, session, right[session])
        if damage == "flip":
            assert hurt.failed[1] is None
            assert {key: value for key, value in hurt.kv.items() if key[0] == "1"} == {
                key: value for key, value in kv.items() if key[0] == "1"
            }
        # Hashes of a session that failed are right, or there are none.
        assert all(kv[key] == value for key, value in hurt.kv.items())
        for session, failed in enumerate(hurt.failed):
            if failed is not None:
                assert failed.startswith(f"stage {stage}, at ")
                assert ", is lost: slot " in failed or "it was cut after it was made" in failed, failed
                pool = hurt.managers[stage].pool
                assert not (pool.session[pool.blocks()] == session).any()
        event(f"{damage} {mode.value}: {sum(failed is not None for failed in hurt.failed)} failed")
        hurt.close()


def examples(count: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Runs a check on so many drawn cases. There is no shrinking: each is a run."""
    drawn = given(
        mode=st.sampled_from(list(ContextMode)),
        partition=st.sampled_from(PARTITIONS),
        how=st.sampled_from(["wavefront", "wavefront", "joint", "batched"]),
        pick=st.integers(0, 2),
        after=st.integers(4, 60),
        damage=st.sampled_from(["flip", "flip", "flip", "cut"]),
        order=st.integers(0, 10_000),
    )
    checks = [HealthCheck.function_scoped_fixture]
    some = settings(max_examples=count, deadline=None, phases=[Phase.generate], suppress_health_check=checks)
    return lambda check: some(drawn(check))


test_a_session_fails_alone_and_nothing_wrong_is_shown = pytest.mark.slow(examples(6)(fails_alone))
test_a_session_fails_alone_in_many_cases = pytest.mark.timeout(600)(pytest.mark.exhaustive(examples(48)(fails_alone)))


@pytest.mark.parametrize("mode", ["clean", "cascade", "staggered"])
def test_the_mark_comes_with_kv_where_no_latent_brings_it(
    mode: str, model: DiTModel, weights: Path, tmp_path: Path
) -> None:
    """The clean pass has a stage of its own, from which only KV flows back to those that show something."""
    topology = build(weights, mode, [[0, 1], [2]], window=2, recall=2)
    hurt = Played(topology, model, tmp_path / "hurt", 3, hurt=("step2", 8, "flip"))
    run_serial(RunSpec(topology, FRAMES, 2, 0, out=tmp_path), tmp_path)
    assert hurt.failed[0] is not None and hurt.failed[0].startswith("stage step2, at frame ")
    assert 0 < len(hurt.shown[0]) < FRAMES * FRAME_BYTES
    assert {failure_in(meta) for meta in hurt.net.kv_metas} == {hurt.failed[0]}
    for session in range(2):
        check_shown(hurt, session, frames_of(tmp_path, session))
    hurt.close()


@pytest.mark.parametrize("how", ["wavefront", "joint", "batched"])
def test_a_session_without_room_fails_and_the_other_takes_its_place(
    how: str, model: DiTModel, weights: Path, tmp_path: Path
) -> None:
    topology = build(weights, "cascade", [[0, 1, 2]], "batched" if how == "batched" else "wavefront", recall=2)

    def play(name: str, frames: float) -> tuple[Lockstep, TierManager]:
        (tmp_path / name).mkdir()
        manager = manager_for(frames)
        net = Lockstep(
            topology, model, FRAMES, 2, tmp_path / name, lambda stage: manager, tmp_path / name, how == "joint"
        )
        net.run(random.Random(7))
        return net, manager

    net, manager = play("little", 18)
    whole, _ = play("enough", 40)
    failed = [net.sessions[session].result().failed for session in range(2)]
    (loser,) = [session for session in range(2) if failed[session] is not None]
    assert "no tier has room for another block of session" in str(failed[loser])
    winner = 1 - loser
    right = [frames_of(tmp_path / "enough", session) for session in range(2)]
    shown = [frames_of(tmp_path / "little", session) for session in range(2)]
    assert shown[winner] == right[winner]
    assert 0 < len(shown[loser]) < len(right[loser])
    assert shown[loser] == right[loser][: len(shown[loser])]
    kv = {key: value for key, value in whole.kv().items() if key[0] == str(winner)}
    assert net.kv() == kv
    pool = manager.pool
    assert set(pool.session[pool.blocks()].tolist()) == {winner}
    assert manager.statistics()["slots"]["hbm"] == 18 * SMALL.layers * 4  # type: ignore[index]
    assert (pool.tier[pool.blocks()] == Tier.hbm).all()


def test_the_text_of_a_mark() -> None:
    lost = BlockLost(7, 1, 2, 12, "a read of x has not come back in 5 s")
    text = failure_text("late", 1, 40, 4, lost)
    assert (
        text
        == "stage late on rank 1, at frame 36: KV of frame 8, layer 2, is lost: a read of x has not come back in 5 s"
    )
    assert failure_text("late", None, 2, 4, TierFull("no room")) == "stage late, at prompt frame 2: no room"
    assert len(failure_text("late", 1, 40, 4, TierError("x" * 1000))) == 500
    meta = {"action": 1}
    assert with_failure(meta, None) is meta
    assert failure_in(meta) is None
    assert failure_in(with_failure(meta, text)) == text
    assert meta == {"action": 1}


class Hang:
    """Reads of one block of session 0's first frame, a sink, don't come back, from one of the manager's steps on."""

    def __init__(self, manager: TierManager, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self._manager, self._after, self._step, self._read = manager, after, manager.step, os.preadv
        self.go = threading.Event()
        self._slots: set[int] = set()
        setattr(manager, "step", self.step)  # noqa: B010
        monkeypatch.setattr(store_file.os, "preadv", self.preadv)

    def step(self) -> None:
        self._step()
        if self._manager.now == self._after:
            self._manager.mover.drain()
            pool = self._manager.pool
            far = [b for b in pool.blocks().tolist() if pool.session[b] == 0 and pool.tier[b] == Tier.nvme]
            self._slots = {int(pool.slot[min(far, key=lambda block: int(pool.start[block]))])}

    def preadv(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        store = self._manager.storage.store
        assert store is not None
        if (offset - 4096) // store.stride in self._slots:
            self.go.wait(30)
        return self._read(descriptor, buffers, offset)


def test_a_read_that_never_returns_ends_its_session_alone(
    model: DiTModel, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topology = build(weights, "cascade", [[0, 1, 2]], window=2, recall=2)
    run_serial(RunSpec(topology, FRAMES, 2, 0, out=tmp_path), tmp_path)
    first = manager_for(1, 0, tmp_path / "nvme", disk=200)
    impatient = replace(first.settings, deadline_s=0.3)
    manager = TierManager(first.layout, first.budget, impatient)
    first.close_all()
    hang = Hang(manager, 20, monkeypatch)
    (tmp_path / "tiered").mkdir()
    net = Lockstep(topology, model, FRAMES, 2, tmp_path / "tiered", lambda stage: manager, tmp_path / "tiered")
    net.run(random.Random(1))
    hang.go.set()
    failed = [net.sessions[session].result().failed for session in range(2)]
    assert failed[0] is not None and "has not come back in 0.3 s" in failed[0]
    assert failed[1] is None
    right = [frames_of(tmp_path, session) for session in range(2)]
    shown = [frames_of(tmp_path / "tiered", session) for session in range(2)]
    assert shown[1] == right[1]
    assert 0 < len(shown[0]) < len(right[0])
    assert right[0].startswith(shown[0])
    manager.close_all()
