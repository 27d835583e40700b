"""Everything that `paceline generate --out DIR` collects.

| file | what it is |
|---|---|
| `summary.json` | the summary that the command prints; of a generation that ended early, why it did (`ended`) |
| `texts.jsonl` | prompts and their continuations, one JSON object a line: `session`, `prompt`, `text` |
| `trace.json` | Chrome trace of all forwards, for https://ui.perfetto.dev |
| `gantt.png` | which rank forwarded which position, and when it waited |
| `tiers-GROUP-RANK.png` | in which tier each block lay over time, for ranks with memory tiers |
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path

from paceline.launch.console import say
from paceline.launch.json_output import versioned
from paceline.launch.outputs.aligned import aligned
from paceline.launch.outputs.atomic import fill, write_atomic, write_bytes
from paceline.launch.outputs.write import tried
from paceline.launch.records import with_events
from paceline.launch.summary import Summary
from paceline.runtime.language.result import LanguageResult
from paceline.runtime.language.spec import GenerateSpec
from paceline.runtime.result import RunResult

__all__ = ["keep_texts", "write_language_outputs"]


def write_language_outputs(
    out: Path, spec: GenerateSpec, result: LanguageResult, summary: Summary, run_dir: Path
) -> None:
    """Write the files of a generation into the folder `out`, which is made where it is missing. The ranks' events are
    in `run_dir`. What could not be written is added to the summary as `unsaved`, with the reasons."""
    texts = {text.id: text.text for text in result.sessions}
    steps = _texts(out, spec, texts)
    if not spec.serial:
        steps |= _timeline(out, spec, result, summary, run_dir)
    for report in result.reports:
        if report.history is None:
            continue
        # Imported here: a run without tiers needs no matplotlib.
        from paceline.launch.outputs.tier_map import write_tier_map

        mode = spec.topology.tiers[report.group]
        title = f"{spec.topology.name}, {report.role} (rank {report.rank}): {mode.policy}, {mode.mode}"
        draw = partial(write_tier_map, history=report.history, title=title)
        name = f"tiers-{report.group}-{report.rank}.png"
        steps[name] = partial(write_atomic, out / name, draw)
    summary["unsaved"] = tried(out, steps)
    summary["unsaved"] += tried(out, _summary(out, summary))


def keep_texts(out: Path, spec: GenerateSpec, stream: Path, why: str) -> None:
    """Write what was committed of the texts of a generation that ended early, and say so on standard error. `stream` is
    the file that it was written to as it came."""
    pieces: dict[int, str] = {}
    try:
        for line in stream.read_text().splitlines():
            session, text, _ = json.loads(line)
            pieces[session] = pieces.get(session, "") + text
    except (OSError, ValueError):
        pass  # no text yet, or a last line that was cut off
    if not pieces:
        return
    texts = {session: pieces.get(session, "") for session in range(len(spec.prompts))}
    say(f"keeping the texts so far in {out}")
    summary: Summary = versioned({"topology": spec.topology.name, "seed": spec.seed, "ended": why})
    for lost in tried(out, _texts(out, spec, texts) | _summary(out, summary)):
        say(f"warning: not saved: {lost}")


def _timeline(
    out: Path, spec: GenerateSpec, result: LanguageResult, summary: Summary, run_dir: Path
) -> dict[str, Callable[[], object]]:
    """Trace and Gantt picture of the ranks that reported."""

    @cache
    def found() -> RunResult:
        return aligned(RunResult([], result.wall_s, with_events(result.reports, run_dir)), prompt=0)

    def trace(path: Path) -> None:
        from paceline.launch.outputs.trace import trace_json

        fill(path, trace_json(spec, found()))

    def gantt(path: Path) -> None:
        from paceline.launch.outputs.gantt import write_gantt

        write_gantt(path, spec, found(), summary)

    return {
        name: partial(write_atomic, out / name, draw) for name, draw in (("trace.json", trace), ("gantt.png", gantt))
    }


def _texts(out: Path, spec: GenerateSpec, texts: Mapping[int, str]) -> dict[str, Callable[[], object]]:
    lines = [
        json.dumps({"session": session, "prompt": prompt, "text": texts[session]})
        for session, prompt in enumerate(spec.prompts)
    ]
    return _file(out, "texts.jsonl", "".join(f"{line}\n" for line in lines))


def _summary(out: Path, summary: Summary) -> dict[str, Callable[[], object]]:
    return _file(out, "summary.json", json.dumps(summary, indent=2) + "\n")


def _file(out: Path, name: str, text: str) -> dict[str, Callable[[], object]]:
    return {name: partial(write_bytes, out / name, text.encode())}
