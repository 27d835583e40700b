"""What the models of a topology expect at a key, in words, and the errors of pydantic as problems."""

from __future__ import annotations

import types
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from paceline import versions
from paceline.pipeline.problem import KeyPath, Problem, closest, nearest
from paceline.pipeline.stage import PLAIN, STAGES, StageKind
from paceline.pipeline.strict_model import parse_size
from paceline.pipeline.topology import MODELS, topology_model

__all__ = [
    "FOREIGN",
    "MISSING",
    "TAKES_NO",
    "UNKNOWN_KEY",
    "Slot",
    "choice",
    "foreign_key",
    "intended_path",
    "pattern",
    "problems_of",
    "slot_at",
    "workload_in",
]

_WORDS = {
    "workload": "world, sleep or language",
    "version": f"{versions.TOPOLOGY}, which this Paceline reads; a file of a later version needs a later Paceline",
    "name": "text of letters, digits, '.', '_' and '-'",
    "model.weights": "zoo:world or the path of a .safetensors file",
    "groups.*.device": "cpu, cuda or cuda:N",
    "stages.*.group": "the name of a group",
    "tiers.*.options.*": "a number, text, true or false",
    "context.memory": "a mapping with kind, and perhaps options",
    "context.memory.kind": "the name of a context memory, such as delta",
    "context.memory.options.*": "a number, text, true or false",
    "speculation.options.*": "a number, text, true or false",
    "stages.*.steps": "a list such as [0] or [1, clean]",
    "stages.*.steps.*": "a step number from 0, or clean",
    "speculation.window": "a whole number of at least 0 and of at most 64, or auto",
    "speculation.depth": "a whole number of at least 1 and of at most 64, or auto",
    "speculation.hedge": "a whole number of at least 0 and of at most 64, or auto",
    "edges.*.from": "the name of a stage",
    "edges.*.to": "the name of a stage",
    "tiers": "a mapping from names of groups to their tiers",
    "tiers.*.bits": "2, 4 or 8, or leave it out",
    "network.bind": "an address such as 127.0.0.1",
}
_UNIONS = {
    2: {"speculation.window", "speculation.depth", "speculation.hedge"},
    3: {"speculation.options.*"},
    4: {"stages.*.steps.*", "tiers.*.options.*", "context.memory.options.*"},
}
"""Keys that take values of more than one kind, by how deep they lie."""
_NAMED = ("groups", "stages", "tiers")
MISSING = "is missing"
UNKNOWN_KEY = "is no known key"
FOREIGN = "has no meaning"
"""How a problem with a key of another workload begins."""
TAKES_NO = "takes no"
"""What a problem with a key of another kind of stage says."""


class Slot(NamedTuple):
    """A place in a topology: its type, and the bounds and validators on it."""

    annotation: Any
    metadata: tuple[Any, ...] = ()

    @property
    def models(self) -> tuple[type[BaseModel], ...]:
        """The models whose keys stand here: those of a union, one, or none."""
        kinds = (_slot(kind).annotation for kind in _members(self.annotation))
        return tuple(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))

    @property
    def fields(self) -> dict[str, FieldInfo]:
        """The keys that a model here knows, as YAML writes them."""
        return {field.alias or name: field for model in self.models for name, field in model.model_fields.items()}

    @property
    def keys(self) -> list[str]:
        """As `fields`, without what stands there."""
        return list(self.fields)

    @property
    def free(self) -> bool:
        """Whether any name may stand below: a mapping of plain values, as the options of a policy."""
        return get_origin(self.annotation) is dict and not _slot(get_args(self.annotation)[1]).models

    def below(self, segment: str | int) -> Slot | None:
        """The place one key or index further down; `None` where the models know none."""
        origin, arguments = get_origin(self.annotation), get_args(self.annotation)
        if origin is dict:
            return _slot(arguments[1])
        if origin is tuple:
            return _slot(arguments[0]) if isinstance(segment, int) else None
        field = self.fields.get(str(segment))
        return None if field is None else _slot(field.annotation, *field.metadata)


def _members(annotation: Any) -> tuple[Any, ...]:
    """Those of a union; of anything else, itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _slot(annotation: Any, *metadata: Any) -> Slot:
    """A slot with `Annotated` and `| None` taken off its type."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return _slot(inner, *more, *metadata)
    if get_origin(annotation) in (Union, types.UnionType):
        others = [kind for kind in get_args(annotation) if kind is not type(None)]
        if len(others) == 1:
            return _slot(others[0], *metadata)
    return Slot(annotation, metadata)


def workload_in(data: object) -> str:
    """The workload of a topology as plain data: the nearest one where it is misspelt, `world` where none is near."""
    workload = data.get("workload", "world") if isinstance(data, dict) else "world"
    return workload if workload in list(MODELS) else closest(str(workload), MODELS) or "world"


def slot_at(path: KeyPath, workload: str) -> Slot | None:
    """What stands at a path of a workload's topologies; `None` where their model knows no such key. A stage knows the
    keys of all kinds of stages: one of another kind is told by its own message."""
    slot: Slot | None = _slot(topology_model(workload))
    for depth, segment in enumerate(path, 1):
        if slot is None:
            return None
        slot = Slot(STAGES) if depth == 2 and path[0] == "stages" else slot.below(segment)
    return slot


def pattern(path: KeyPath) -> str:
    """The path with `*` for names of groups, stages and options, and for indices: `stages.*.steps`."""
    return ".".join("*" if isinstance(part, int) or _is_name(path, place) else part for place, part in enumerate(path))


def _is_name(path: KeyPath, place: int) -> bool:
    """Whether the part at a place is the user's own word."""
    if place == 1:
        return path[0] in _NAMED
    named = ((3, "tiers", "options"), (2, "speculation", "options"), (3, "context", "options"))
    return (place, path[0], path[place - 1]) in named


def _expected(path: KeyPath, workload: str) -> str:
    """What would be right at a path."""
    words = _WORDS.get(pattern(path))
    slot = slot_at(path, workload)
    if words or slot is None:
        return f"write {words or 'a known key'}"
    kind = slot.annotation
    if slot.models:
        return f"write a mapping with keys among {', '.join(slot.keys)}"
    if slot.free:
        return "write a mapping from names to numbers, texts, true or false"
    if get_origin(kind) is dict:
        return f"write a mapping from names to {path[-1]}, with at least one"
    if get_origin(kind) is tuple:
        return f"write a list of {path[-1]}"
    if get_origin(kind) is Literal:
        return f"write {choice(get_args(kind))}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"write {choice(member.value for member in kind)}"
    if any(isinstance(entry, BeforeValidator) and entry.func is parse_size for entry in slot.metadata):
        none = any(isinstance(entry, annotated_types.Ge) for entry in slot.metadata)
        what = "a size, or 0 for none," if none else "a size above 0"
        return f"write {what} in bytes or with a unit, such as 4096, 64KiB or 1.5MiB"
    if kind is bool:
        return "write true or false"
    if kind is int or kind is float:
        return f"write a {'whole ' if kind is int else ''}number{_bounds(slot.metadata)}"
    return "write a path" if kind is Path else "write text"


def choice(values: Iterable[object]) -> str:
    """As `a, b or c`."""
    *most, last = map(str, values)
    return f"{', '.join(most)} or {last}" if most else last


def _bounds(metadata: tuple[Any, ...]) -> str:
    low = high = ""
    for bound in metadata:
        if isinstance(bound, annotated_types.Ge):
            low = f" of at least {bound.ge}"
        elif isinstance(bound, annotated_types.Gt):
            low = f" above {bound.gt}"
        elif isinstance(bound, annotated_types.Le):
            high = f" of at most {bound.le}"
        elif isinstance(bound, annotated_types.Lt):
            high = f" below {bound.lt}"
    return " and".join(filter(None, (low, high)))


def problems_of(error: ValidationError, data: object) -> list[Problem]:
    """One problem for each key that pydantic refused."""
    problems: dict[KeyPath, Problem] = {}
    workload = workload_in(data)
    for details in error.errors(include_url=False, include_context=False):
        for problem in _translate(details, data, workload):
            problems.setdefault(problem.path, problem)
    # A misspelt key is one problem and not two: what it was meant to be is not missing.
    meant = {intended_path(problem.path, workload) for problem in problems.values() if problem.wrong == UNKNOWN_KEY}
    return [problem for path, problem in problems.items() if problem.wrong != MISSING or path not in meant]


def intended_path(path: KeyPath, workload: str) -> KeyPath:
    """The known path that a misspelt one is nearest to; empty where none is close."""
    slot = slot_at(path[:-1], workload)
    close = closest(str(path[-1]), slot.keys if slot else [])
    return (*path[:-1], close) if close else ()


def foreign_key(path: KeyPath, workload: str) -> Problem | None:
    """The problem with a key that another workload takes and this one does not; `None` where it is no such key."""
    takers = [name for name in MODELS if slot_at(path, name) is not None]
    if not takers or workload in takers:
        return None
    only = f"workload {takers[0]} takes" if len(takers) == 1 else f"workloads {' and '.join(takers)} take"
    return Problem(path, f"{FOREIGN} in workload {workload}", f"remove it; only {only} it")


def _foreign_keys(path: KeyPath, value: object, workload: str) -> list[Problem]:
    """One problem for each key at or below a path that is of another workload; none where the path is of none."""
    found = foreign_key(path, workload)
    if found is None or not isinstance(value, dict) or not value:
        return [found] if found else []
    return [problem for key, below in value.items() for problem in _foreign_keys((*path, key), below, workload)] or [
        found
    ]


def _translate(details: ErrorDetails, data: object, workload: str) -> list[Problem]:
    path = details["loc"]
    if path[0:1] == ("stages",) and len(path) > 2 and isinstance(_value_at(data, path[:2]), dict):
        path = _without_tag(path, workload)
    if path and path[-1] == "[key]":
        named = path[:-1]
        right = "use letters, digits, '_' and '-' only, so that --set can name it"
        return [Problem(named, f"{named[-1]!r} is no name", right)]
    for depth in _UNIONS:
        if len(path) > depth and pattern(path[:depth]) in _UNIONS[depth]:
            path = path[:depth]  # pydantic names the branch of the union
    if details["type"] == "extra_forbidden" and path[0] == "stages" and slot_at(path, workload) is not None:
        return _of_another_kind(path, data, workload)
    if details["type"] == "extra_forbidden":
        foreign = _foreign_keys(path, _value_at(data, path), workload)
        parent = slot_at(path[:-1], workload)
        known = parent.keys if parent else []
        return foreign or [Problem(path, UNKNOWN_KEY, nearest(str(path[-1]), known))]
    if details["type"] == "missing":
        return [Problem(path, MISSING, _expected(path, workload))]
    return [Problem(path, f"is {_describe(_value_at(data, path))}", _expected(path, workload))]


def _without_tag(path: KeyPath, workload: str) -> KeyPath:
    """The path without the branch of the union of stages, which pydantic names."""
    tags = (*topology_model(workload).own_stages, PLAIN)
    return (*path[:2], *path[3:]) if path[2] in tags else path


def _of_another_kind(path: KeyPath, data: object, workload: str) -> list[Problem]:
    """The problem with a key of another kind of stage; none where the kind itself is wrong."""
    *_, key = path
    kind = _value_at(data, (*path[:2],)).get("kind")  # type: ignore[attr-defined]
    if kind not in list(StageKind):
        return []
    own = topology_model(workload).own_stages
    kinds = [other for other, model in own.items() if key in model.model_fields]
    it = "them" if key == "steps" else "it"
    other = f" or write kind: {' or '.join(kinds)}" if kinds else ""
    return [Problem(path, f"a {kind} stage {TAKES_NO} {key}", f"remove {it}{other}")]


def _value_at(data: object, path: KeyPath) -> object:
    for segment in path:
        data = data[segment]  # type: ignore[index]
    return data


def _describe(data: object) -> str:
    """A value in a few words."""
    if data is None:
        return "empty"
    if isinstance(data, bool):
        return str(data).lower()
    if isinstance(data, dict | list):
        kind = "mapping" if isinstance(data, dict) else "list"
        return f"a {kind}" if data else f"an empty {kind}"
    text = repr(data)
    return text if len(text) <= 60 else f"{text[:57]}..."
