"""Managers for tests: a small layout, budgets in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paceline.tiers.layout import Budget, Layout
from paceline.tiers.manager import TierManager
from paceline.tiers.settings import TierSettings

__all__ = ["LAYOUT", "budget_of", "manager_of"]

LAYOUT = Layout(layers=2, heads=2, block_size=4, head_dim=8)


def budget_of(hbm: int, dram: int = 0, nvme: int = 0, path: Path | None = None, layout: Layout = LAYOUT) -> Budget:
    """A budget in blocks."""
    page = -(-layout.block_nbytes // 4096) * 4096
    return Budget(hbm * layout.block_nbytes, dram * layout.block_nbytes, nvme * page, path)


@contextmanager
def manager_of(
    hbm: int, dram: int = 0, nvme: int = 0, path: Path | None = None, layout: Layout = LAYOUT, **settings: Any
) -> Iterator[TierManager]:
    """A manager with budgets in blocks, closed at the end."""
    made = TierSettings(**{"watermark": 0, **settings})
    manager = TierManager(layout, budget_of(hbm, dram, nvme, path, layout), made)
    try:
        yield manager
    finally:
        manager.close_all()
