"""Whether the memory tiers of a topology hold what a generation will need, before anything is started."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.launch.errors import ArgumentError
from paceline.launch.folders import make_writable
from paceline.pipeline.sizes import format_size
from paceline.pipeline.topology import StageKind
from paceline.runtime.language.models import Models
from paceline.runtime.language.settings import first_settings
from paceline.runtime.language.spec import GenerateSpec
from paceline.stages.lm.layer_run import even_runs
from paceline.stages.lm.rank_tiers import RankTiers
from paceline.stages.tier_spec import budget_of, nvme_folder
from paceline.tiers.errors import TierError
from paceline.tiers.packed_memory import stored_nbytes

__all__ = ["check_tiers_hold"]

_AHEAD = 64
"""Positions beyond the text that windows in flight may write."""


def check_tiers_hold(spec: GenerateSpec, models: Models, prompts: Sequence[int]) -> None:
    """Check every group's budgets: room for two blocks of each layer in hbm, and in all tiers for the sessions that run
    at a time; `prompts` are their lengths in tokens. Raises `ArgumentError`."""
    topology = spec.topology
    for stage in topology.stages.values():
        tiers = topology.tiers.get(stage.group)
        drafts = stage.kind is StageKind.draft
        plan = models.draft_plan if drafts else models.plan
        if tiers is None or plan is None or (drafts and spec.plain):
            continue
        key = f"tiers.{stage.group}"
        if tiers.nvme is not None:
            make_writable(f"{key}.nvme.path: {tiers.nvme.path}", nvme_folder(tiers.nvme))
        ranks = 1 if spec.serial else topology.groups[stage.group].ranks
        held = [plan.kv_layers(first, last) for first, last in even_runs(plan.layers, ranks)]
        dtype = plan.folder.dtype_on(topology.groups[stage.group].device)
        try:
            shape = plan.kv_shape
            if not min(held):
                raise ValueError(
                    f"rank {held.index(0)} of the group holds no attention layer, and so no KV; lower "
                    f"groups.{stage.group}.ranks, or run without tiers"
                )
            layout = RankTiers(tiers, "").layout(max(held), shape, dtype)
            stored = None if tiers.bits is None else stored_nbytes(layout, tiers.bits)
            slots = budget_of(tiers).slots(layout, stored)
        except (TierError, ValueError) as error:
            raise ArgumentError(f"{key}: {error}") from error
        width = first_settings(topology.speculation).hedge if drafts else 0
        at_once = 1 if spec.serial else topology.speculation.sessions
        most = (length + spec.options(session).max_tokens + _AHEAD for session, length in enumerate(prompts))
        lengths = sorted(most, reverse=True)[:at_once]
        # Hedges share all but their last blocks.
        blocks = sum(layout.blocks(length) + width * (1 + layout.blocks(_AHEAD)) for length in lengths) * layout.layers
        if blocks > slots.total:
            size = layout.block_nbytes
            raise ArgumentError(
                f"{key}: {len(lengths)} session(s) at a time of up to {lengths[0]} tokens take {blocks} blocks "
                f"({format_size(blocks * size)}); the tiers hold {slots.total} ({format_size(slots.total * size)}); "
                "raise dram or nvme.size, or lower speculation.sessions or --max-tokens"
            )
