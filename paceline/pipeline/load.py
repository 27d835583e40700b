"""A topology file, read and checked as a whole: every problem at once, each with its line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from paceline.pipeline.document import Document, apply_override
from paceline.pipeline.problem import KeyPath, Problem, TopologyError
from paceline.pipeline.schema import (
    FOREIGN,
    TAKES_NO,
    UNKNOWN_KEY,
    intended_path,
    pattern,
    problems_of,
    slot_at,
    workload_in,
)
from paceline.pipeline.stage import StageBase
from paceline.pipeline.topology import Topology, topology_model
from paceline.pipeline.validate import UNKNOWN, check_world_size, validate

__all__ = ["check_topology", "load_topology"]

# What stands in for a required value that is wrong, so that the rest can still be checked.
_STAND_INS: dict[str, object] = {
    "name": "unnamed",
    "groups.*": {},
    "stages.*": {"kind": "sleep", "group": UNKNOWN},
    "stages.*.kind": "sleep",
    "stages.*.group": UNKNOWN,
    "edges.*": {"from": UNKNOWN, "to": UNKNOWN},
    "edges.*.from": UNKNOWN,
    "edges.*.to": UNKNOWN,
    "tiers.*": {"hbm": 1},
    "tiers.*.hbm": 1,
    "tiers.*.nvme.path": "?",
    "tiers.*.nvme.size": 1,
    "network.curve": {"secret": "?", "allow": "?"},
    "network.curve.secret": "?",
    "network.curve.allow": "?",
}


def load_topology(path: str | PathLike[str], overrides: Sequence[str] = (), world_size: int | None = None) -> Topology:
    """Read a topology, with `--set` overrides such as `edges.0.inflight=4`.

    `world_size` is the number of processes that a launcher started, where it is known. Raises `TopologyError` with
    every problem of the file.
    """
    topology, problems = check_topology(path, overrides, world_size)
    if topology is None:
        raise TopologyError(problems)
    return topology


def check_topology(
    path: str | PathLike[str],
    overrides: Sequence[str] = (),
    world_size: int | None = None,
    further: Callable[[Topology], Iterable[Problem]] | None = None,
) -> tuple[Topology | None, list[Problem]]:
    """The topology, or `None` and everything that is wrong with it, in order of lines. `further` checks a topology that
    is right by itself. Raises nothing of its own."""
    document = Document.read(Path(path))
    if document.data is None and document.problems:
        return None, document.problems
    if document.data is None:
        document.data = {}
    for setting in overrides:
        apply_override(document, setting)
    problems = list(document.problems)
    parsed = _parse(document.data)
    seen = {problem.path for problem in problems}
    problems += [document.locate(problem) for problem in parsed.problems if problem.path not in seen]
    if parsed.topology is not None:
        broken = parsed.broken | {
            key for problem in document.problems for key in _touched(problem.path, False, parsed.workload)
        }
        found = validate(parsed.topology, broken)
        if world_size is not None and "groups.*.ranks" not in broken:
            found += check_world_size(parsed.topology, world_size)
        problems += map(document.locate, found)
        if further is not None and not problems:
            problems += map(document.locate, further(parsed.topology))
    if problems:
        return None, sorted(problems, key=_order)
    return parsed.topology, []


def _order(problem: Problem) -> tuple[bool, int, str]:
    return problem.line is None, problem.line or 0, problem.key


@dataclass(frozen=True, slots=True)
class _Parsed:
    """What pydantic made of the data. Where values were wrong, `topology` has stand-ins for them, and `broken` names
    what can't be relied on, as patterns such as `stages.*.steps`."""

    workload: str
    topology: Topology | None
    problems: list[Problem]
    broken: frozenset[str]


def _parse(data: object) -> _Parsed:
    """Validate data; where that fails, once more without the wrong values."""
    workload = workload_in(data)
    try:
        return _Parsed(workload, _validated(data, workload), [], frozenset())
    except ValidationError as error:
        problems = problems_of(error, data)
    patched = deepcopy(data)
    broken: set[str] = set()
    for problem in problems:
        broken |= _touched(problem.path, problem.wrong == UNKNOWN_KEY, workload)
        _patch(patched, problem.path, workload)
    if "workload" in broken:
        # Whether a key is of another workload, or of its stages, can't be known.
        problems = [p for p in problems if not p.wrong.startswith(FOREIGN) and TAKES_NO not in p.wrong]
    try:
        return _Parsed(workload, _validated(patched, workload), problems, frozenset(broken))
    except ValidationError:
        return _Parsed(workload, None, problems, frozenset(broken))


def _validated(data: object, workload: str) -> Topology:
    """Strict as JSON is: no number from text, no flag as a number, but text for a choice and lists for tuples."""
    return topology_model(workload).model_validate_json(json.dumps(data), strict=True)


def _patch(data: Any, path: KeyPath, workload: str) -> None:
    """Take the wrong value at a path out, or put its stand-in there."""
    while len(path) > 1 and slot_at(path[:-1], workload) is None:
        path = path[:-1]
    stand_in = _STAND_INS.get(pattern(path))
    for segment in path[:-1]:
        if isinstance(data, dict) and segment not in data:
            return  # what it stood in has a stand-in already
        data = data[segment]
    if not path:
        return
    if stand_in is not None:
        data[path[-1]] = deepcopy(stand_in)
        if pattern(path) == "stages.*.kind":
            # Keys that only some kinds take.
            for key in data.keys() - StageBase.model_fields.keys():
                del data[key]
    elif isinstance(data, dict):
        data.pop(path[-1], None)
    elif isinstance(data, list):
        data[int(path[-1])] = 0


def _touched(path: KeyPath, unknown: bool, workload: str) -> set[str]:
    """Patterns of the fields that a problem at this path makes unreliable: those at it, above it and below it. An
    unknown key may be a slip of the pen for its nearest neighbour."""
    if unknown:
        path = intended_path(path, workload)
    slot = slot_at(path, workload)
    above = {pattern(path[:length]) for length in range(1, len(path) + 1)}
    below: Iterable[str] = slot.keys if slot else ()
    if len(path) == 1 and path[0] in ("groups", "stages", "edges", "tiers"):
        item = slot_at((path[0], "x" if path[0] != "edges" else 0), workload)
        return above | {f"{path[0]}.*.{key}" for key in (item.keys if item else [])}
    return above | {f"{pattern(path)}.{key}" for key in below}
