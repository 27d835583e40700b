"""What is known of a model before a weight is read: as its class builds it, and not as its config.json says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paceline.stages.lm.anatomy import Anatomy
from paceline.stages.lm.folder import ModelFolder
from paceline.stages.lm.probe import probe
from paceline.stages.lm.rotary import position_limit
from paceline.stages.lm.skeleton import skeleton
from paceline.stages.lm.traits import LayerTraits, kv_shape_of
from paceline.stages.lm.weights import WeightFiles

__all__ = ["Blueprint"]


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A model that can run layer by layer."""

    folder: ModelFolder
    kind: str
    """The name of its class."""
    traits: tuple[LayerTraits, ...]
    """By layer."""
    rows: int
    """Tokens that it can be given: rows of the embedding, which may be more than the tokenizer has."""
    vocab: int
    """Tokens that it can give: rows of the head."""
    hidden: int
    max_positions: int | None
    """Longest sequence that it computes as it was made to; None where nothing bounds it."""
    mixes_rows: bool
    """Whether what a row gives may depend, in its last bits, on what other rows hold: experts gather their rows."""

    @classmethod
    def read(cls, path: Path) -> Blueprint:
        """Check a folder: its configuration, the names and shapes of its weights, and whether the model can run.

        Raises `ModelFolderError`.
        """
        found = ModelFolder.read(path)
        # Some types fill all their weights when they are built; those of an unknown structure need not be.
        Anatomy.of(skeleton(found, torch.float32, hollow=True))
        model = skeleton(found, torch.float32)
        plan = cls.of(found, model, Anatomy.of(model))
        WeightFiles(path).check(model)
        return plan

    @classmethod
    def of(cls, found: ModelFolder, model: Any, anatomy: Anatomy) -> Blueprint:
        """That of a skeleton. Raises `ModelFolderError`."""
        rows, hidden = anatomy.embedding.module.weight.shape
        return cls(
            folder=found,
            kind=type(model).__name__,
            traits=probe(model, anatomy),
            rows=int(rows),
            vocab=int(anatomy.head.module.weight.shape[0]),
            hidden=int(hidden),
            max_positions=position_limit(anatomy, model.config),
            mixes_rows=any("expert" in name for part in anatomy.layers for name, _ in part.module.named_modules()),
        )

    @property
    def layers(self) -> int:
        """How many decoder layers the model has."""
        return len(self.traits)

    @property
    def kv_shape(self) -> tuple[int, int]:
        """KV heads of a layer, and the size of one. Raises `ModelFolderError` where layers differ, and where none keeps
        KV."""
        return kv_shape_of(self.traits)

    def kv_layers(self, first: int, last: int) -> int:
        """How many of the layers `[first, last)` keep KV."""
        return sum(not each.state_bytes for each in self.traits[first:last])

    @property
    def state_bytes(self) -> int:
        """Bytes of the state of constant size that a sequence has in layers that keep no KV."""
        return sum(each.state_bytes for each in self.traits)
