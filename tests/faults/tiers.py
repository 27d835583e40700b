"""Sessions over tiers for fault tests: each knows what it should hold."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import torch
from torch import Tensor

from paceline.tiers.layout import Layout
from paceline.tiers.manager import TierManager
from paceline.tiers.paged_kv import PagedKV
from paceline.tiers.settings import Tier

__all__ = ["LAYOUT", "Damage", "Session", "corrupt"]

LAYOUT = Layout(layers=2, heads=2, block_size=4, head_dim=8)


@dataclass
class Session:
    """One sequence, what was written into it, and what attention should give."""

    manager: TierManager
    seed: int
    kv: PagedKV = field(init=False)

    def __post_init__(self) -> None:
        self.kv = PagedKV(self.manager)
        made = torch.Generator().manual_seed(self.seed)
        self.keys, self.values, self.queries = (
            torch.randn(LAYOUT.layers, heads, 200, LAYOUT.head_dim, generator=made) for heads in (2, 2, 4)
        )

    def forward(self, count: int) -> None:
        """Append positions and check what attention gives, in every layer."""
        start = self.kv.length
        stop = start + count
        self.kv.reserve(stop)
        for layer in range(LAYOUT.layers):
            self.kv.write(layer, start, self.keys[layer, :, start:stop], self.values[layer, :, start:stop])
            out = self.kv.attend(layer, self.queries[layer, :, start:stop], start)[0]
            torch.testing.assert_close(out, self.expected(layer, start, stop), atol=2e-5, rtol=1e-5)
        self.kv.length = stop
        self.manager.step()

    def expected(self, layer: int, start: int, stop: int) -> Tensor:
        hidden = torch.arange(stop) > torch.arange(start, stop)[:, None]
        k = self.keys[layer, :, :stop].repeat_interleave(2, dim=0)
        v = self.values[layer, :, :stop].repeat_interleave(2, dim=0)
        scores = self.queries[layer, :, start:stop] @ k.transpose(1, 2) * LAYOUT.head_dim**-0.5
        return torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=2) @ v

    def blocks(self, tier: Tier) -> list[int]:
        """Its blocks in a tier."""
        pool = self.manager.pool
        self.manager.mover.drain()
        return [int(b) for b in pool.blocks() if pool.tier[b] == tier and pool.session[b] == self.kv.session]


def corrupt(manager: TierManager, block: int) -> None:
    """Flip one bit of a block in the file."""
    store = manager.storage.store
    assert store is not None
    at = 4096 + int(manager.pool.slot[block]) * store.stride + 17
    descriptor = os.open(store.open_path, os.O_RDWR)
    byte = os.pread(descriptor, 1, at)
    os.pwrite(descriptor, bytes([byte[0] ^ 4]), at)
    os.fsync(descriptor)
    os.close(descriptor)


class Damage:
    """Flips a bit in every block that a session has on disk, from one of the manager's steps on."""

    def __init__(self, manager: TierManager, session: int, after: int) -> None:
        self._manager, self._session, self._after = manager, session, after
        self._hurt: set[tuple[int, int]] = set()
        self._step = manager.step
        setattr(manager, "step", self.step)  # noqa: B010 (mypy forbids to assign to a method)

    def step(self) -> None:
        """The manager's own step, and then the damage."""
        self._step()
        if self._manager.now < self._after:
            return
        self._manager.mover.drain()
        pool = self._manager.pool
        for block in pool.blocks().tolist():
            # Twice would be whole again.
            name = block, int(pool.generation[block])
            if pool.session[block] == self._session and pool.tier[block] == Tier.nvme and name not in self._hurt:
                self._hurt.add(name)
                corrupt(self._manager, block)
