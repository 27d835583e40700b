"""What travels on an edge (defined below the runtime, because stages make items)."""

from paceline.stages.item import Item, Key, Meta

__all__ = ["Item", "Key", "Meta"]
