"""Frames over the memory tiers: what is read is what was written, and a session comes out as it does without them."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paceline.pipeline.context import Read
from paceline.pipeline.tiers import NvmeSpec, TierSpec
from paceline.pipeline.topology import ContextMode
from paceline.runtime.serial import run_serial
from paceline.runtime.spec import RunSpec
from paceline.stages.dit.config import DiTConfig
from paceline.stages.dit.model import DiTModel
from paceline.stages.frame_sharing import SharedFrames
from paceline.stages.frame_tiers import FrameTiers, frame_tier_manager
from paceline.tiers.errors import BlockLost, TierFull
from paceline.tiers.manager import TierManager
from paceline.tiers.policies import ONLINE
from paceline.tiers.settings import Tier
from tests.faults.tiers import corrupt
from tests.stages.lockstep import Lockstep
from tests.stages.test_denoise import build

SMALL = DiTConfig(width=64, layers=3, heads=2)
FRAME = SMALL.kv_bytes()
"""Bytes of a frame's KV"""


def manager_for(
    frames: float, dram: float = 0, nvme: Path | None = None, block_size: int = 16,
    policy: str = "slab", refresh: int = 2, disk: int = 64,
) -> TierManager:  # fmt: skip
    """Tiers with room for so many frames; `disk` frames on a disk, where there is one."""
    spec = TierSpec(
        hbm=int(frames * FRAME), dram=int(dram * FRAME), nvme=NvmeSpec(path=nvme, size=disk * FRAME) if nvme else None,
        policy=policy, block_size=block_size, refresh=refresh,
    )  # fmt: skip
    return frame_tier_manager(spec, SMALL.header, 1, 2, "cpu", "random", "step0", 0)


@settings(max_examples=25, deadline=None)
@given(
    block_size=st.sampled_from([4, 8, 16, 24, 64, 100]),
    policy=st.sampled_from(ONLINE),
    actions=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), min_size=5, max_size=40),
)
def test_what_is_read_is_what_was_written(block_size: int, policy: str, actions: list[tuple[int, int]]) -> None:
    """Frames written, recalled and dropped in any order, through an hbm of a few blocks for each layer."""
    manager = manager_for(
        2.5 * max(1, block_size / 64), 60 * max(1, block_size / 16), block_size=block_size, policy=policy
    )
    frames = FrameTiers(manager, SMALL.tokens, 1, range(2, 3))
    draw = torch.Generator().manual_seed(0)
    kept: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for frame, (action, pick) in enumerate(actions):
        if action < 2 or not kept:
            kept[frame] = []
            for layer in range(SMALL.layers):
                k, v = torch.randn(2, 2, SMALL.tokens, 32, generator=draw)
                frames.put(frame, 2, layer, k, v)
                kept[frame].append((k, v))
        else:
            gone = sorted(kept)[pick % len(kept)]
            frames.drop(gone, 2)
            del kept[gone]
        wanted = [other for other in sorted(kept) if (other * 7 + pick) % 3]
        frames.prefetch(wanted)
        for layer in range(SMALL.layers) if wanted else ():
            keys, values = frames.read([Read(other, 2) for other in wanted], layer)
            assert torch.equal(keys, torch.cat([kept[other][layer][0] for other in wanted], dim=1))
            assert torch.equal(values, torch.cat([kept[other][layer][1] for other in wanted], dim=1))
        manager.step()
        found = manager.statistics()
        assert sum(found["hits"].values()) == found["lookups"]  # type: ignore[attr-defined]
        assert frames.nbytes == manager.layout.block_nbytes * len(manager.pool)
    frames.close()
    assert len(manager.pool) == 0
    manager.close_all()


def test_the_profile_sees_where_attention_falls() -> None:
    manager = manager_for(20, refresh=3)
    frames = FrameTiers(manager, SMALL.tokens, 1, range(2, 3))
    draw = torch.Generator().manual_seed(0)
    for frame in range(2):
        for layer in range(SMALL.layers):
            frames.put(frame, 2, layer, *torch.randn(2, 2, SMALL.tokens, 32, generator=draw))
    reads = [Read(0, 2), Read(1, 2), Read(2, 1)]
    n = SMALL.tokens
    q, k = torch.randn(2, n, 32, generator=draw), torch.randn(2, 4 * n, 32, generator=draw)
    weights = torch.softmax(q @ k.transpose(1, 2) / 32**0.5, dim=-1).mean((0, 1))
    for passes in range(1, 4):
        for layer in range(SMALL.layers):
            frames.observe(reads, layer, q, k)
        facts = manager.facts()
        if passes < 3:
            assert not facts.seen.any(), "measured off its turn"
    assert (facts.seen == 1).all()
    for block, frame, place, mass in zip(facts.block, facts.start, facts.place, facts.mass, strict=True):
        first = int(frame) * n + int(place) * 16
        assert mass == pytest.approx(float(weights[first : first + 16].sum()), rel=1e-5), block
    manager.close_all()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    mode=st.sampled_from(list(ContextMode)),
    partition=st.sampled_from([[[0], [1, 2]], [[0], [1], [2]], [[0, 1, 2]]]),
    hbm=st.floats(0.5, 4),
    dram=st.sampled_from([0, 1, 40]),
    recall=st.integers(0, 2),
    order=st.integers(0, 10_000),
)
def test_any_budget_gives_the_serial_bits(
    mode: ContextMode, partition: list[list[int]], hbm: float, dram: float, recall: int, order: int,
    model: DiTModel, weights: Path, tmp_path: Path,
) -> None:  # fmt: skip
    """Down to two blocks for each layer in hbm and none in dram."""
    topology = build(weights, mode.value, partition, window=2, recall=recall)
    serial = run_serial(RunSpec(topology, 10, 1, 0, kv_hash=True), tmp_path)
    managers: list[TierManager] = []

    def tiers(stage: str) -> TierManager:
        managers.append(manager_for(hbm, dram, None if dram > 1 else tmp_path / "nvme"))
        return managers[-1]

    net = Lockstep(topology, model, 10, 1, tmp_path, tiers)
    net.run(random.Random(order))
    assert net.kv() == serial.ranks[0].kv_sha256
    assert net.outputs() == [serial.sessions[0].outputs_sha256]
    for manager in managers:
        found = manager.statistics()
        assert sum(found["hits"].values()) == found["lookups"] > 0  # type: ignore[attr-defined]
        assert not found["errors"]
        manager.close_all()


def test_what_every_frame_reads_does_not_go_to_nvme(
    model: DiTModel, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sinks and the window, in a session much longer than hbm and dram hold, also where the policy goes by use."""
    topology = build(weights, "cascade", [[0], [1, 2]], window=3, recall=1)
    far: list[int] = []
    managers: list[TierManager] = []

    def tiers(stage: str) -> TierManager:
        made = manager_for(8, 4, tmp_path / "nvme", refresh=64)
        # Moves are made at once, so that a thread's timing decides nothing.
        manager = TierManager(made.layout, made.budget, replace(made.settings, asynchronous=False))
        made.close_all()
        fetch = manager.fetch

        def watched(blocks: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
            pool, newest = manager.pool, int(manager.pool.start[blocks].max())
            lasting = blocks[(pool.start[blocks] == 0) | (pool.start[blocks] >= newest - 1)]
            far.extend(pool.start[lasting[pool.tier[lasting] == Tier.nvme]].tolist())
            return fetch(blocks)

        monkeypatch.setattr(manager, "fetch", watched)
        managers.append(manager)
        return manager

    Lockstep(topology, model, 60, 1, tmp_path, tiers).run(random.Random(1))
    assert far == []
    for manager in managers:
        assert manager.storage.free[Tier.nvme].taken > 0
        manager.close_all()


def written(manager: TierManager, session: int, count: int) -> FrameTiers:
    """Frames that were written, of a session."""
    frames = FrameTiers(manager, SMALL.tokens, 1, range(2, 3), session)
    draw = torch.Generator().manual_seed(session)
    for frame in range(count):
        for layer in range(SMALL.layers):
            frames.put(frame, 2, layer, *torch.randn(2, 2, SMALL.tokens, 32, generator=draw))
    return frames


def failed_and_gone(frames: FrameTiers, manager: TierManager, session: int) -> None:
    """A session that failed holds nothing, keeps nothing, and gives zeros whatever it is asked for."""
    pool = manager.pool
    reads = [Read(0, 2), Read(7, 2)]
    key = torch.ones(2, SMALL.tokens, 32)
    for _ in range(2):
        for tensor in frames.read(reads, 1):
            assert tensor.shape == (2, 2 * SMALL.tokens, 32)
            assert not tensor.any()
        frames.put(7, 2, 0, key, key)
        frames.prefetch([0, 7])
        frames.observe(reads, 1, key, torch.ones(2, 3 * SMALL.tokens, 32))
        frames.drop(0, 2)
        assert frames.nbytes == 0
        assert not (pool.session[pool.blocks()] == session).any()
        manager.step()


@pytest.mark.parametrize("full", [True, False], ids=["TierFull", "BlockLost"])
def test_a_session_that_fails_gives_its_room_away(full: bool, tmp_path: Path) -> None:
    manager = manager_for(3, refresh=1) if full else manager_for(1, nvme=tmp_path, refresh=1)
    first, second = written(manager, 4, 1), written(manager, 6, 3 if full else 8)
    if not full:
        manager.mover.drain()
        pool = manager.pool
        for block in pool.blocks().tolist():
            if pool.tier[block] == Tier.nvme and pool.session[block] == 6:
                corrupt(manager, block)
        assert second.cause is None
        second.read([Read(frame, 2) for frame in range(8)], 0)
    assert isinstance(second.cause, TierFull if full else BlockLost)
    assert second.cause.__traceback__ is None
    failed_and_gone(second, manager, 6)
    # The other one reads what it wrote, and writes where the first one was.
    assert first.cause is None
    draw = torch.Generator().manual_seed(4)
    for layer in range(SMALL.layers):
        for found, wrote in zip(
            first.read([Read(0, 2)], layer), torch.randn(2, 2, SMALL.tokens, 32, generator=draw), strict=True
        ):
            assert torch.equal(found, wrote)
    for layer in range(SMALL.layers):
        first.put(1, 2, layer, *torch.randn(2, 2, SMALL.tokens, 32, generator=draw))
    assert first.cause is None
    first.close()
    second.close()
    assert len(manager.pool) == 0
    manager.close_all()
    assert not list(tmp_path.glob("*"))


def test_sessions_that_start_from_the_same_frames_hold_them_once(tmp_path: Path) -> None:
    manager = manager_for(2, 40, tmp_path)
    shared = SharedFrames(manager)
    draw = torch.Generator().manual_seed(0)
    prompt = torch.randn(2, SMALL.layers, 2, 2, SMALL.tokens, 32, generator=draw)
    sessions = [FrameTiers(manager, SMALL.tokens, 1, range(2, 3), number, 2, shared) for number in range(3)]
    kept: list[list[torch.Tensor]] = []
    for number, frames in enumerate(sessions):
        # The third starts from another second frame; what follows the prompt is each one's own, even where it is equal.
        kept.append([prompt[0], prompt[1] + (number == 2), prompt[1]])
        for frame, kv in enumerate(kept[-1]):
            for layer in range(SMALL.layers):
                frames.put(frame, 2, layer, *kv[layer])
        manager.step()
    each = SMALL.layers * manager.layout.blocks(SMALL.tokens)
    assert (len(manager.pool), shared.shared) == ((3 + 1 + 2) * each, 3 * each)

    def check(number: int) -> None:
        for layer in range(SMALL.layers):
            keys, values = sessions[number].read([Read(frame, 2) for frame in range(3)], layer)
            assert torch.equal(keys, torch.cat([kv[layer, 0] for kv in kept[number]], dim=1))
            assert torch.equal(values, torch.cat([kv[layer, 1] for kv in kept[number]], dim=1))

    for number in (0, 1, 2):
        check(number)
    sessions[0].close()
    assert len(manager.pool) == 5 * each
    check(1)
    check(2)
    sessions[1].close()
    check(2)
    sessions[2].close()
    assert len(manager.pool) == 0 and not shared._blocks and not shared._keys
    manager.close_all()
