"""`--set KEY=VALUE`: one value of a topology changed from the command line."""

from __future__ import annotations

from typing import Any

from paceline.pipeline.document import Document, parse_yaml
from paceline.pipeline.problem import KeyPath, Problem, closest, nearest
from paceline.pipeline.schema import UNKNOWN_KEY, foreign_key, slot_at, workload_in

__all__ = ["apply_override"]


def apply_override(document: Document, setting: str) -> None:
    """Apply `edges.0.inflight=4` to the document; the value is YAML. What is wrong ends up in `document.problems`."""
    key, equals, text = setting.partition("=")
    file = f"--set {key}"
    if not equals:
        document.problems.append(Problem((key,), "has no value", "write --set KEY=VALUE", file))
        return
    value = parse_yaml(text, file)
    if value.problems:
        document.problems += [Problem((key,), p.wrong, p.right, file) for p in value.problems]
        return
    path = _resolve(document.data, key)
    if isinstance(path, Problem):
        document.problems.append(Problem(path.path, path.wrong, path.right, file))
    else:
        document.override(path, value.data)


def _resolve(data: Any, key: str) -> KeyPath | Problem:
    """The path that a dotted key means in this data, or what is wrong with it."""
    path: KeyPath = ()
    workload = workload_in(data)
    foreign = foreign_key(tuple(key.split(".")), workload)
    if foreign is not None:
        return foreign
    groups = data.get("groups") if isinstance(data, dict) else None
    for segment in key.split("."):
        slot = slot_at(path, workload)
        known: dict[str, str | int] = {name: name for name in slot.keys} if slot else {}
        if isinstance(data, list):
            known = {str(index): index for index in range(len(data))}
        elif path == ("tiers",):
            # A group may be given tiers that the file gives none.
            known = {name: name for name in {**_mapping(groups), **_mapping(data)}}
        elif slot is not None and slot.free:
            known = {segment: segment}
        elif isinstance(data, dict) and not known:
            known = {name: name for name in data}
        if segment not in known:
            return Problem((key,), UNKNOWN_KEY, _suggest(path, segment, list(known)))
        below = known[segment]
        path = (*path, below)
        data = data[int(below)] if isinstance(data, list) else data.get(below) if isinstance(data, dict) else None
    return path


def _mapping(data: Any) -> dict[str, Any]:
    return data if isinstance(data, dict) else {}


def _suggest(path: KeyPath, segment: str, known: list[str]) -> str:
    """The nearest whole key, or the keys known at this depth."""
    prefix = "".join(f"{part}." for part in path)
    close = closest(segment, known)
    if close is not None:
        return f"did you mean '{prefix}{close}'?"
    if not known:
        return f"{prefix[:-1]} has nothing below it that could be set"
    return nearest(segment, [prefix + name for name in known])
