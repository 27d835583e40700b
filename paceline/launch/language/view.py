"""How a generation looks while it runs, and what it is summed up as at its end.

The JSON object of `paceline generate --json` holds:

- `tokens_per_second`: new tokens of all sessions over the time from the first prompt's pass to the last token.
- `accepted_share`, `acceptance_by_position`: accepted over judged drafted tokens, over all and by index in the window.
- `windows`: drafted windows that were judged.
- `stale_tokens`: drafted tokens that were thrown away unjudged, and those of them that the target had forwarded.
- `hedge`: rejections that found their refill ready, and those that did not.
- `tokens`: new tokens by where they came from.
- `controller`: the settings at the end, and the speed over plain decoding that was predicted for them and that was
  measured, both against plain passes of the same run; null where nothing was drafted.
- `tiers`: by group with memory tiers, all its ranks together: `hits` by tier, which sum to `lookups` (blocks that
  attention read, once for each time), `moved_bytes` between tiers, `omitted_mass` (share of the attention mass that a
  call left out, measured: `max` and `mean`), `errors` of the nvme tier by kind, `stalls` by cause, `blocks` and `bytes`
  by tier at the end, `recomputed_positions`. Empty where no group has tiers.
- `parked`: sessions that were parked (`--park`).
- `waits_s`: seconds in which a rank had nothing to do, by its role and rank.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TextIO

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from paceline.launch.console import takes_colour
from paceline.launch.summary import rounded, summary_of
from paceline.launch.tables import tier_table
from paceline.pipeline.speculation.counters import Counters
from paceline.runtime.result import LanguageResult, RankReport
from paceline.runtime.spec import GenerateSpec

__all__ = ["StreamView", "print_texts", "show_summary", "summarize_language"]


_CODES = {"prompt": "\x1b[2m", "draft": "\x1b[32m", "refill": "\x1b[33m"}
_RESET = "\x1b[0m"
_LEGEND = Text.assemble(("drafted", "green"), " ", ("refilled", "yellow"), " ", "plain")


class StreamView:
    """Prints the text of a single session as it is committed, character by character as it was decoded; called now and
    then with nothing new, too. On a terminal colours say where it came from."""

    def __init__(self, path: Path, output: TextIO, prompt: str) -> None:
        self._path, self._output = path, output
        self._colour = takes_colour(output)
        self._at = 0
        self._write(prompt, "prompt")

    def __call__(self, done: int = 0) -> None:
        """Print what has come since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                data = file.read()
        except FileNotFoundError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        for line in whole.splitlines():
            _, text, origin = json.loads(line)
            self._write(text, origin)

    def close(self) -> None:
        """The last of it."""
        self()
        self._write("\n", "plain")

    def _write(self, text: str, origin: str) -> None:
        code = _CODES.get(origin, "") if self._colour and text else ""
        self._output.write(f"{code}{text}{_RESET}" if code else text)
        self._output.flush()


def print_texts(prompts: Sequence[str], summary: Mapping[str, Any]) -> None:
    """Prompts with their continuations, one after another."""
    for prompt, session in zip(prompts, summary["sessions"], strict=True):
        if len(prompts) > 1:
            print(f"--- session {session['id']} ({session['finish_reason']})")
        print(prompt + session["text"])
    sys.stdout.flush()


def show_summary(console: Console, summary: Mapping[str, Any]) -> None:
    """The figures, as a table."""
    table = Table(title=f"{summary['topology']}, {summary['coupling']}", title_justify="left", show_header=False)
    tokens, hedge, stale = summary["tokens"], summary["hedge"], summary["stale_tokens"]
    count = sum(tokens.values())
    speed = summary["tokens_per_second"]
    table.add_row("tokens", f"{count} of {len(summary['sessions'])} session(s), {speed:.1f} a second" if speed else "0")
    if summary["windows"]:
        by = " ".join(f"{share:.2f}" for share in summary["acceptance_by_position"])
        table.add_row("accepted", f"{summary['accepted_share']:.3f} of {summary['windows']} windows; by position {by}")
        table.add_row("came from", f"drafts {tokens['drafted']}, refills {tokens['refilled']}, plain {tokens['plain']}")
        table.add_row("hedges", f"{hedge['hits']} refills were ready, {hedge['misses']} were not")
        table.add_row("stale", f"{stale['drafted']} drafted tokens, {stale['verified']} of them verified")
        s = summary["controller"]["settings"]
        table.add_row("settings", f"window {s['window']}, depth {s['depth']}, hedge {s['hedge']}")
    for rank in summary["ranks"]:
        share = rank["busy_s"] / rank["wall_s"] if rank["wall_s"] else 0.0
        what = f"{rank['passes']} passes of {rank['pass_ms']:.1f} ms, busy {share:.0%}"
        table.add_row(f"rank {rank['rank']} ({rank['role']})", what)
    console.print(table)
    tiers = tier_table(summary["tiers"])
    if tiers is not None:
        console.print(tiers)
    if summary["windows"] and console.is_terminal:
        console.print(_LEGEND)


_RANK_FIELDS = ("role", "passes", "tokens", "pass_ms", "counters", "tiers", "failures")


def summarize_language(spec: GenerateSpec, result: LanguageResult) -> dict[str, Any]:
    """Plain data that JSON can hold."""
    counters = Counters()
    names = {f.name for f in fields(Counters)}
    for report in result.ranks:
        counters.add(Counters(**{name: value for name, value in report.counters.items() if name in names}))
    count = sum(len(text.token_ids) for text in result.sessions)
    return summary_of(spec, result, _rank) | {
        "coupling": spec.sampling.effective_coupling.value,
        "temperature": spec.sampling.temperature,
        "plain": spec.plain or spec.serial,
        "tokens_per_second": round(count / result.wall_s, 3) if result.wall_s > 0 else None,
        "accepted_share": round(counters.accepted_share, 4),
        "acceptance_by_position": [round(share, 4) for share in counters.acceptance_by_position],
        "windows": counters.windows,
        "stale_tokens": {"drafted": counters.stale_drafted, "verified": counters.stale_verified},
        "hedge": {"hits": counters.hedge_hits, "misses": counters.hedge_misses},
        "tokens": {
            "drafted": sum(text.drafted for text in result.sessions),
            "refilled": sum(text.refilled for text in result.sessions),
            "plain": sum(len(text.token_ids) - text.drafted - text.refilled for text in result.sessions),
        },
        "waits_s": {f"{report.role} {report.rank}": round(report.wait_s, 4) for report in result.ranks},
        "controller": {
            "predicted_speedup": _speed(result.predicted_speedup),
            "measured_speedup": _speed(result.measured_speedup),
            "settings": result.settings,
        },
        "parked": result.parked,
        "warnings": [*spec.warnings, *result.warnings],
    }


def _rank(report: RankReport) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(report)
    return rounded({name: fields[name] for name in _RANK_FIELDS})


def _speed(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
