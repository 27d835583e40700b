"""Which models a language workload runs, and where they are."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from paceline.pipeline.speculation.settings import DrafterKind
from paceline.runtime.language.spec import GenerateSpec
from paceline.stages.lm.folder import ModelFolder, ModelFolderError
from paceline.stages.lm.tokenizer import Tokenizer, check_pair, has_tokenizer

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
    layers: int
    vocab: int
    """Tokens that drafter and target share; no other is ever chosen"""
    eos: frozenset[int]
    max_positions: int | None
    """Longest sequence that the target takes, and the drafter; None where nothing bounds it"""

    @classmethod
    def of(cls, spec: GenerateSpec) -> Models:
        """Check the folders. Raises `ModelFolderError`."""
        topology = spec.topology
        target = find_folder(topology.model.target)
        found = ModelFolder.read(target)
        draft, limits = None, [_limit(found)]
        vocab = found.vocab
        drafts = topology.speculation.drafter is DrafterKind.model and not spec.plain and not spec.serial
        if drafts:
            draft = find_folder(topology.model.draft)
            vocab = check_pair(target, draft)
            limits.append(_limit(ModelFolder.read(draft)))
        elif has_tokenizer(target):
            vocab = min(vocab, Tokenizer.load(target).size)
        longest = min((limit for limit in limits if limit is not None), default=None)
        return cls(target, draft, found.layers, vocab, frozenset() if spec.ignore_eos else found.eos_ids, longest)

    def tokenizer(self) -> Tokenizer:
        """The target's. Raises `ModelFolderError`."""
        return Tokenizer.load(self.target)


def _limit(found: ModelFolder) -> int | None:
    limit = getattr(found.config, "max_position_embeddings", None)
    return None if limit is None else int(limit)
