"""What a generation is summed up as: the JSON object of `paceline generate --json`.

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

from dataclasses import fields
from typing import Any

import msgspec

from paceline.launch.summary import rounded, summary_of
from paceline.pipeline.speculation.counters import Counters
from paceline.runtime.result import LanguageResult, RankReport
from paceline.runtime.spec import GenerateSpec

__all__ = ["summarize_language"]

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
