"""From what a topology says of memory tiers to the budgets and settings of a manager."""

from __future__ import annotations

from dataclasses import replace

from paceline.pipeline.tiers import TierSpec
from paceline.tiers.layout import Budget, Layout
from paceline.tiers.settings import Mode, TierSettings

__all__ = ["budget_of", "settings_of"]


def budget_of(spec: TierSpec, share: int = 1) -> Budget:
    """The bytes of each tier, or one of `share` equal parts of them."""
    nvme, path = (0, None) if spec.nvme is None else (spec.nvme.size, spec.nvme.path)
    return Budget(spec.hbm // share, spec.dram // share, nvme // share, path)


def settings_of(spec: TierSpec, layout: Layout) -> TierSettings:
    """How the tiers are run; what the topology leaves open stays as it is there."""
    settings = TierSettings(
        policy=spec.policy.value,
        mode=Mode(spec.mode.value),
        epsilon=spec.epsilon,
        refresh=spec.refresh,
        hysteresis=spec.hysteresis,
        bits=spec.bits,
    )
    if spec.bandwidth is None:
        return settings
    return replace(settings, bandwidth=max(1, spec.bandwidth // layout.block_nbytes))
