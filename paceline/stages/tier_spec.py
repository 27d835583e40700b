"""From what a topology says of memory tiers to the budgets and settings of a manager."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from paceline.pipeline.tiers import NvmeSpec, TierSpec
from paceline.tiers.layout import Budget, Layout
from paceline.tiers.settings import Mode, TierSettings

__all__ = ["budget_of", "nvme_folder", "settings_of"]


def budget_of(spec: TierSpec, share: int = 1) -> Budget:
    """The bytes of each tier, or one of `share` equal parts of them."""
    if spec.nvme is None:
        return Budget(spec.hbm // share, spec.dram // share, 0, None)
    return Budget(spec.hbm // share, spec.dram // share, spec.nvme.size // share, nvme_folder(spec.nvme))


def nvme_folder(spec: NvmeSpec) -> Path:
    """The folder of the nvme tier; `~` is the home folder of this host."""
    return Path(os.path.expanduser(spec.path))


def settings_of(spec: TierSpec, layout: Layout) -> TierSettings:
    """How the tiers are run; what the topology leaves open stays as it is there."""
    settings = TierSettings(
        policy=spec.policy,
        options=spec.options,
        mode=Mode(spec.mode.value),
        epsilon=spec.epsilon,
        refresh=spec.refresh,
        hysteresis=spec.hysteresis,
        bits=spec.bits,
    )
    if spec.bandwidth is None:
        return settings
    return replace(settings, bandwidth=max(1, spec.bandwidth // layout.block_nbytes))
