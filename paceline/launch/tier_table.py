"""What memory tiers held and what was read from them, as a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from paceline.pipeline.sizes import format_size

__all__ = ["tier_table"]


def tier_table(tiers: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """By group and tier; `tiers` is that of a summary. None where no group has any."""
    if not tiers:
        return None
    table = Table(title="memory tiers", title_justify="left")
    table.add_column("group")
    table.add_column("tier")
    for name in ("most blocks", "most bytes", "blocks read"):
        table.add_column(name, justify="right")
    for group, found in tiers.items():
        for tier, hits in found["hits"].items():
            share = f"{hits / found['lookups']:.1%}" if found["lookups"] else "-"
            table.add_row(group, tier, str(found["most_blocks"][tier]), format_size(found["most_bytes"][tier]), share)
    moved = sum(found["moved_bytes"] for found in tiers.values())
    waited = sum(sum(found["stall_seconds"].values()) for found in tiers.values())
    errors = sum(sum(found["errors"].values()) for found in tiers.values())
    table.caption = f"moved {format_size(moved)}, waited {waited:.2f} s, {errors} disk errors"
    table.caption_justify = "left"
    return table
