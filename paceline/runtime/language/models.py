"""Which models a language workload runs, and where they are."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paceline.runtime.spec import GenerateSpec
from paceline.stages.lm.drafter import make_drafter
from paceline.stages.lm.folder import ModelFolder, ModelFolderError
from paceline.stages.lm.tokenizer import Tokenizer, check_pair

if TYPE_CHECKING:
    from paceline.stages.lm.blueprint import Blueprint

__all__ = ["Models", "find_folder"]

_ZOO = "zoo:"


def find_folder(name: str) -> Path:
    """The folder behind `zoo:NAME` or a path. Raises `ModelFolderError` for a name that is not in the zoo."""
    if not name.startswith(_ZOO):
        return Path(os.path.expanduser(name))
    spec = importlib.util.find_spec("zoo")
    folders = [Path(folder) for folder in (spec.submodule_search_locations if spec else None) or []]
    inside = name.removeprefix(_ZOO)
    for folder in folders:
        if (folder / inside / "config.json").is_file():
            return folder / inside
    known = sorted(
        f"{_ZOO}{file.parent.relative_to(folder)}" for folder in folders for file in folder.glob("*/*/config.json")
    )
    raise ModelFolderError(f"there is no embedded language model {name}; known: {', '.join(known) or 'none'}")


@dataclass(frozen=True, slots=True)
class Models:
    """What is known of the models before anything is loaded."""

    target: Path
    draft: Path | None
    plan: Blueprint
    """Of the target"""
    draft_plan: Blueprint | None
    eos: frozenset[int]

    @classmethod
    def of(cls, spec: GenerateSpec) -> Models:
        """Check the folders. Raises `ModelFolderError`, and `ValueError` for a drafter that there is not."""
        topology = spec.topology
        target = find_folder(topology.model.target)
        ModelFolder.read(target)
        # Imported here, as it brings torch: what is wrong with a folder should not wait for it.
        from paceline.stages.lm.blueprint import Blueprint

        plan = Blueprint.read(target)
        draft = draft_plan = None
        drafter = None if spec.plain or spec.serial else make_drafter(topology.speculation)
        if drafter is not None and drafter.has_model:
            draft = find_folder(topology.model.draft)
            draft_plan = Blueprint.read(draft)
            check_pair(plan, draft_plan)
        return cls(target, draft, plan, draft_plan, frozenset() if spec.ignore_eos else plan.folder.eos_ids)

    @property
    def layers(self) -> int:
        """Those of the target."""
        return self.plan.layers

    @property
    def vocab(self) -> int:
        """Tokens that the target can give, whoever drafts: rows of its head."""
        return self.plan.vocab

    @property
    def max_positions(self) -> int | None:
        """Longest sequence that the target takes; None where nothing bounds it."""
        return self.plan.max_positions

    @property
    def draft_positions(self) -> int | None:
        """Longest sequence that the drafter takes; beyond it the target decodes by itself."""
        return None if self.draft_plan is None else self.draft_plan.max_positions

    def tokenizer(self) -> Tokenizer:
        """The target's. Raises `ModelFolderError`."""
        return Tokenizer.load(self.target)
