from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from paceline.tiers.errors import TierFull
from paceline.tiers.manager import TierManager
from paceline.tiers.paged_kv import PagedKV
from paceline.tiers.policies import ONLINE
from paceline.tiers.settings import Tier
from tests.tiers.managers import LAYOUT, manager_of

HEADS = 4
SCALE = LAYOUT.head_dim**-0.5


def tokens(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Keys and values `[L, G, count, D]`."""
    made = torch.Generator().manual_seed(seed)
    shape = (2, LAYOUT.layers, LAYOUT.heads, count, LAYOUT.head_dim)
    keys, values = torch.randn(shape, generator=made)
    return keys, values


def queries(count: int, seed: int) -> Tensor:
    shape = (LAYOUT.layers, HEADS, count, LAYOUT.head_dim)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 1_000_003))


@dataclass
class Twin:
    """A sequence over tiers, and the same as plain tensors `[L, G, length, D]`."""

    kv: PagedKV
    keys: Tensor = field(default_factory=lambda: tokens(0, 0)[0])
    values: Tensor = field(default_factory=lambda: tokens(0, 0)[1])

    @property
    def length(self) -> int:
        return self.keys.shape[2]

    def forward(self, count: int, seed: int, keep: int | None = None, window: int | None = None) -> list[Tensor]:
        """Append tokens, attend, and keep the first so many of them. Gives what attention gave, by layer."""
        start = self.length
        keys, values = tokens(count, seed)
        q = queries(count, seed)
        self.kv.reserve(start + count)
        outs = []
        for layer in range(LAYOUT.layers):
            self.kv.write(layer, start, keys[layer], values[layer])
            outs.append(self.kv.attend(layer, q[layer], start, SCALE, window)[0])
        self.keys = torch.cat([self.keys, keys], dim=2)
        self.values = torch.cat([self.values, values], dim=2)
        for layer, out in enumerate(outs):
            torch.testing.assert_close(out, self.reference(layer, q[layer], start, window), atol=2e-5, rtol=1e-5)
        if keep is not None:
            self.truncate(start + min(keep, count))
        self.kv.length = self.length
        return outs

    def reference(self, layer: int, q_HMD: Tensor, start: int, window: int | None) -> Tensor:
        distance = torch.arange(start, start + q_HMD.shape[1])[:, None] - torch.arange(self.length)
        seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        q, k, v = (x.double()[None] for x in (q_HMD, self.keys[layer], self.values[layer]))
        return scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=SCALE, enable_gqa=True)[0].float()

    def truncate(self, length: int) -> None:
        self.keys, self.values = self.keys[:, :, :length], self.values[:, :, :length]

    def check(self) -> None:
        """What is held is bit for bit what was written."""
        if self.length:
            for layer in range(LAYOUT.layers):
                keys, values = self.kv.read(layer, 0, self.length)
                assert torch.equal(keys, self.keys[layer])
                assert torch.equal(values, self.values[layer])


def check_tables(manager: TierManager) -> None:
    """Every block lies in one slot, no slot is taken twice, none is lost."""
    pool = manager.pool
    manager.mover.drain()
    blocks = pool.blocks()
    for tier in Tier:
        slots = pool.slot[blocks[pool.tier[blocks] == tier]].tolist()
        free = manager.storage.free[tier]
        assert len(set(slots)) == len(slots)
        assert sorted([*slots, *(slot for slot in range(free.count) if slot in free)]) == list(range(free.count))
    assert not pool.moving[blocks].any()
    statistics = manager.statistics()
    assert sum(statistics["hits"].values()) == statistics["lookups"]  # type: ignore[attr-defined]


actions = st.lists(
    st.tuples(
        st.sampled_from(["forward", "speculate", "window", "truncate", "fork", "close", "open", "prefetch", "step"]),
        st.integers(0, 7),
        st.integers(1, 9),
    ),
    min_size=5,
    max_size=24,
)


@settings(max_examples=60, deadline=None)
@given(
    actions=actions,
    hbm=st.integers(4, 24),
    dram=st.sampled_from([0, 1, 5, 300]),
    policy=st.sampled_from([name for name in ONLINE if name != "slab"]),
    asynchronous=st.booleans(),
    chunk=st.sampled_from([1, 3, 64]),
    refresh=st.integers(1, 3),
)
def test_any_budget_gives_what_plain_tensors_give(
    actions: list[tuple[str, int, int]],
    hbm: int,
    dram: int,
    policy: str,
    asynchronous: bool,
    chunk: int,
    refresh: int,
) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        manager_of(
            hbm,
            dram,
            300,
            Path(folder),
            policy=policy,
            asynchronous=asynchronous,
            chunk=chunk,
            refresh=refresh,
            bandwidth=3,
        ) as manager,
    ):
        twins = [Twin(PagedKV(manager))]
        for seed, (action, which, size) in enumerate(actions):
            twin = twins[which % len(twins)]
            if action == "open" or (action == "fork" and len(twins) < 5):
                length = min(twin.length, size * 3)
                forked = Twin(twin.kv.fork(length) if action == "fork" else PagedKV(manager))
                if action == "fork":
                    forked.keys, forked.values = twin.keys[:, :, :length], twin.values[:, :, :length]
                twins.append(forked)
            elif action == "truncate":
                twin.truncate(max(0, twin.length - size))
                twin.kv.length = twin.length
            elif action == "close" and len(twins) > 1:
                twin.kv.close()
                twins.remove(twin)
            elif action == "prefetch" and twin.length:
                manager.prefetch(manager.pool.blocks()[:size])
            elif action == "step":
                manager.step()
            else:
                window = size if action == "window" else None
                twin.forward(size * 2, seed, size if action == "speculate" else None, window)
                manager.step()
        check_tables(manager)
        for twin in twins:
            twin.check()
        for twin in twins:
            twin.kv.close()
        check_tables(manager)
        assert len(manager.pool) == 0


@pytest.mark.parametrize("counts", [[1] * 30, [17, 1, 1, 5, 20]])
@pytest.mark.parametrize("dram", [0, 6, 200])
def test_same_bits_wherever_blocks_lie(counts: list[int], dram: int, tmp_path: Path) -> None:
    def run(hbm: int, dram: int, nvme: int, asynchronous: bool = True) -> list[Tensor]:
        path = tmp_path if nvme else None
        with manager_of(hbm, dram, nvme, path, chunk=2, refresh=2, asynchronous=asynchronous) as manager:
            twin, outs = Twin(PagedKV(manager)), []
            for seed, count in enumerate(counts):
                outs += twin.forward(count, seed)
                manager.step()
            if hbm == 4:
                hits = manager.statistics()["hits"]
                assert hits["dram"] + hits["nvme"] > hits["hbm"] > 0  # type: ignore[index]
            return outs

    expected = run(200, 0, 0)
    for asynchronous in (False, True):
        found = run(4, dram, 200, asynchronous)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_forks_share_blocks_until_one_writes() -> None:
    with manager_of(64) as manager:
        twin = Twin(PagedKV(manager))
        twin.forward(10, 0)
        held = len(manager.pool)
        copy = Twin(twin.kv.fork(7), twin.keys[:, :, :7], twin.values[:, :, :7])
        assert len(manager.pool) == held
        copy.forward(1, 1)
        # Only the block that was written was copied, in each layer.
        assert len(manager.pool) == held + LAYOUT.layers
        twin.forward(3, 2)
        twin.check()
        copy.check()
        twin.kv.close()
        copy.check()
        copy.kv.close()
        assert len(manager.pool) == 0


def test_truncation_gives_blocks_back() -> None:
    with manager_of(64) as manager:
        twin = Twin(PagedKV(manager))
        twin.forward(16, 0)
        assert len(manager.pool) == 4 * LAYOUT.layers
        twin.truncate(5)
        twin.kv.length = 5
        assert len(manager.pool) == 2 * LAYOUT.layers
        twin.check()


def test_no_room_anywhere_fails_one_session_by_name_and_no_other() -> None:
    with manager_of(8) as manager:
        first, second = Twin(PagedKV(manager)), Twin(PagedKV(manager))
        first.forward(12, 0)
        with pytest.raises(TierFull, match=r"no tier has room for another block of session 1: .* raise the budgets"):
            second.forward(8, 1)
        # What a failed reservation took is free again.
        assert len(manager.pool) == 3 * LAYOUT.layers
        first.check()
        second.kv.close()
        first.forward(1, 2)


def test_padding_counts_for_nothing() -> None:
    with manager_of(64, refresh=1) as manager:
        kv = PagedKV(manager)
        found: list[np.ndarray] = []
        manager.on_masses = lambda query, masses: found.append(masses)
        keys, values = tokens(5, 0)
        q = queries(8, 0)
        kv.reserve(8)
        kv.write(0, 0, keys[0], values[0])
        out = kv.attend(0, q[0], 0, SCALE, new=range(0, 5))[0]
        kv.length = 5
        alone = PagedKV(manager)
        alone.reserve(5)
        alone.write(0, 0, keys[0], values[0])
        expected = alone.attend(0, q[0][:, :5], 0, SCALE)[0]
        torch.testing.assert_close(out[:, :5], expected)
        np.testing.assert_allclose(found[0], found[1], atol=1e-6)
        assert found[0].sum() == pytest.approx(1)
        assert torch.isfinite(out).all()


def test_sessions_that_wrote_nonsense_leave_nothing_behind() -> None:
    with manager_of(8) as manager:
        bad = PagedKV(manager)
        bad.reserve(16)
        nan = torch.full((LAYOUT.heads, 16, LAYOUT.head_dim), float("nan"))
        for layer in range(LAYOUT.layers):
            bad.write(layer, 0, nan, nan)
        bad.close()
        twin = Twin(PagedKV(manager))
        twin.forward(3, 0)
        twin.forward(1, 1)
