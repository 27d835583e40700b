"""How many answers a model gives right, by number of pairs: `python -m zoo.mqar.evaluate FOLDER`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from paceline.stages.lm.memory.model import MemoryLM
from zoo.folder import frozen
from zoo.mqar.recall import SETTINGS, Setting, draw

__all__ = ["main", "recalled"]

_SEED = 1 << 40
"""Texts that no training draws."""


def recalled(model: MemoryLM, settings: Sequence[Setting] = SETTINGS, texts: int = 64) -> dict[int, float]:
    """By number of pairs, the share of queries whose likeliest next token is the answer."""
    found = {}
    for setting in settings:
        right = asked = 0
        for part in range(0, texts, 16):
            batch = draw(setting, min(16, texts - part), (_SEED, setting.length, setting.pairs, part))
            ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.asked)
            with torch.inference_mode():
                hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
                guesses = model.lm_head(hidden[mask]).argmax(-1)
            right += int((guesses == ids.roll(-1, 1)[mask]).sum())
            asked += int(mask.sum())
        found[setting.pairs] = right / asked
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m zoo.mqar.evaluate", description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder that zoo.mqar.train wrote")
    parser.add_argument("--texts", type=int, default=256, help="texts for each number of pairs")
    arguments = parser.parse_args(argv)
    if not (arguments.folder / "config.json").is_file():
        parser.error(f"{arguments.folder} has no config.json; give a folder that zoo.mqar.train wrote")
    if arguments.texts < 1:
        parser.error(f"--texts is {arguments.texts}; at least 1 is needed")
    model = frozen(MemoryLM.from_pretrained(str(arguments.folder), dtype=torch.float32, local_files_only=True))
    print(json.dumps({"recalled": recalled(model, texts=arguments.texts)}))


if __name__ == "__main__":
    main()
