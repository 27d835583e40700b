"""Everything that `paceline generate --out DIR` collects.

| file | what it is |
|---|---|
| `summary.json` | the summary that the command prints |
| `texts.jsonl` | prompts and their continuations, one JSON object a line: `session`, `prompt`, `text` |
| `tiers-GROUP-RANK.png` | in which tier each block lay over time, for ranks with memory tiers |
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from paceline.launch.outputs.atomic import write_atomic, write_bytes
from paceline.launch.summary import Summary
from paceline.runtime.language.result import LanguageResult
from paceline.runtime.language.spec import GenerateSpec

__all__ = ["write_language_outputs"]


def write_language_outputs(out: Path, spec: GenerateSpec, result: LanguageResult, summary: Summary) -> list[Path]:
    """Write the files of a generation into the folder `out`, which is made where it is missing; gives their paths.
    Raises `OSError`."""
    out.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"session": text.id, "prompt": prompt, "text": text.text})
        for prompt, text in zip(spec.prompts, result.sessions, strict=True)
    ]
    written = [
        write_bytes(out / "summary.json", json.dumps(summary, indent=2).encode() + b"\n"),
        write_bytes(out / "texts.jsonl", "".join(f"{line}\n" for line in lines).encode()),
    ]
    for report in result.reports:
        if report.history is None:
            continue
        # Imported here: a run without tiers needs no matplotlib.
        from paceline.launch.outputs.tier_map import write_tier_map

        mode = spec.topology.tiers[report.group]
        title = f"{spec.topology.name}, {report.role} (rank {report.rank}): {mode.policy}, {mode.mode}"
        draw = partial(write_tier_map, history=report.history, title=title)
        written.append(write_atomic(out / f"tiers-{report.group}-{report.rank}.png", draw))
    return written
