"""The memory tiers of one rank of a group: what it takes to make the manager that a decoder puts its KV into."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from paceline.pipeline.tiers import TierMode, TierSpec
from paceline.stages.lm.layer_run import LayerRun
from paceline.stages.tier_spec import budget_of, settings_of
from paceline.tiers.layout import Layout
from paceline.tiers.manager import TierManager
from paceline.tiers.store_file import Fingerprint, fingerprint

__all__ = ["RankTiers"]

_HBM = 3
"""Blocks of each layer in hbm in a small size."""
_POSITIONS = 128
"""What the tiers in a small size hold, twice."""


@dataclass(frozen=True, slots=True)
class RankTiers:
    """What a rank needs to know to make its manager, once its layers are loaded."""

    spec: TierSpec
    model: str
    """Names the weights: KV of one model means nothing to another."""
    rank: int = 0
    """Of the ranks that the model is spread over."""
    world: int = 1

    def small(self, run: LayerRun) -> RankTiers:
        """The same in a small size, all in memory and exact: for a few tokens, most of whose blocks leave hbm."""
        layout = self.layout(run.kv_layers, run.kv_shape, run.dtype)
        bytes_of = layout.block_nbytes * layout.layers
        few = {
            "hbm": _HBM * bytes_of,
            "dram": 2 * layout.blocks(_POSITIONS) * bytes_of,
            "nvme": None,
            "mode": TierMode.exact,
            "bits": None,
        }
        return replace(self, spec=self.spec.model_copy(update=few))

    def layout(self, layers: int, kv_shape: tuple[int, int], dtype: torch.dtype) -> Layout:
        """The blocks of so many layers."""
        heads, size = kv_shape
        return Layout(layers, heads, self.spec.block_size, size, dtype)

    def fingerprint(self, layers: range, kv_shape: tuple[int, int], dtype: torch.dtype) -> Fingerprint:
        """What files with the KV of these layers have to say of themselves."""
        layout = self.layout(len(layers), kv_shape, dtype)
        return fingerprint(layout, self._name(layers), self.rank, self.world)

    def manager(self, run: LayerRun) -> TierManager:
        """The manager for a run of layers. Raises `TierError` where its budgets are too small or its folder can't be
        used."""
        layout = self.layout(run.kv_layers, run.kv_shape, run.dtype)
        settings, name = settings_of(self.spec, layout), self._name(run.layers)
        return TierManager(layout, budget_of(self.spec), settings, run.device, name, self.rank, self.world)

    def _name(self, layers: range) -> str:
        return f"{self.model} layers {layers.start}-{layers.stop - 1}"
