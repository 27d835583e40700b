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
from functools import cached_property, partial
from pathlib import Path

from msgspec.structs import replace

from paceline.launch.console import say
from paceline.launch.files import write_atomic, write_bytes
from paceline.launch.outputs.timeline import aligned
from paceline.launch.outputs.write import summary_step, timeline_steps, tried
from paceline.launch.records import with_events
from paceline.launch.summary import Summary, versioned
from paceline.runtime.result import LanguageResult
from paceline.runtime.spec import GenerateSpec

__all__ = ["TextOutputs", "keep_texts"]


class TextOutputs:
    """See `Outputs`."""

    def __init__(self, out: Path, spec: GenerateSpec, result: LanguageResult, run_dir: Path) -> None:
        """The ranks' events are in `run_dir`."""
        self._out, self._spec, self._result, self._run_dir = out, spec, result, run_dir

    def write_results(self, summary: Summary) -> list[str]:
        """What could not be written is added to the summary as `unsaved`."""
        texts = {text.id: text.text for text in self._result.sessions}
        summary["unsaved"] = tried(self._out, _texts(self._out, self._spec, texts))
        return [*summary["unsaved"], *tried(self._out, summary_step(self._out, summary))]

    def write_pictures(self, summary: Summary, watch: Callable[[str, int, int], None]) -> list[str]:
        out, spec = self._out, self._spec
        steps = {} if spec.serial else timeline_steps(out, spec, lambda: self._with_events, summary)
        for report in self._result.ranks:
            if report.history is None:
                continue
            # Imported here: a run without tiers needs no matplotlib.
            from paceline.launch.outputs.tier_map import write_tier_map

            mode = spec.topology.tiers[report.group]
            title = f"{spec.topology.name}, {report.role} (rank {report.rank}): {mode.policy}, {mode.mode}"
            draw = partial(write_tier_map, history=report.history, title=title)
            name = f"tiers-{report.group}-{report.rank}.png"
            steps[name] = partial(write_atomic, out / name, draw)
        return tried(out, steps, watch)

    @cached_property
    def _with_events(self) -> LanguageResult:
        """The result with its events, for trace and Gantt picture alike."""
        ranks = with_events(self._result.ranks, self._run_dir)
        return aligned(replace(self._result, ranks=ranks), prompt=0)


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
    for lost in tried(out, _texts(out, spec, texts) | summary_step(out, summary)):
        say(f"warning: not saved: {lost}")


def _texts(out: Path, spec: GenerateSpec, texts: Mapping[int, str]) -> dict[str, Callable[[], object]]:
    lines = [
        json.dumps({"session": session, "prompt": prompt, "text": texts[session]})
        for session, prompt in enumerate(spec.prompts)
    ]
    content = "".join(f"{line}\n" for line in lines)
    return {"texts.jsonl": partial(write_bytes, out / "texts.jsonl", content.encode())}
