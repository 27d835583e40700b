"""A YAML file as plain data that remembers the line of every key, and overrides from the command line on top of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

import yaml

from paceline.pipeline.problem import KeyPath, Problem, closest, nearest
from paceline.pipeline.schema import UNKNOWN_KEY, foreign_key, slot_at, workload_in

__all__ = ["Document", "apply_override", "number_of", "parse_yaml", "surprise"]


_WORDS = {"yes": "true", "on": "true", "no": "false", "off": "false"}
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_SCIENTIFIC = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+")


def surprise(text: str, value: object) -> tuple[str, str] | None:
    """What is wrong with a plain value `text` that YAML 1.1 reads as `value`, and what would be right; None where every
    version of YAML reads the same. In quotes, a value is always text."""
    quoted = f"'{text}' in quotes for text"
    if isinstance(value, bool):
        meant = _WORDS.get(text.lower())
        if meant is not None:
            return f"is {text}, which YAML 1.1 reads as {meant}", f"write {meant}, or {quoted}"
    elif isinstance(value, int | float):
        if ":" in text:
            return f"is {text}, which YAML 1.1 reads as {value:g} (base 60)", f"write {value:g}, or {quoted}"
        if _OCTAL.fullmatch(text):
            decimal = text.replace("_", "").replace("0", "", 1)
            wrong = f"is {text}, which YAML 1.1 reads as {value} (base 8)"
            return wrong, f"write {value} or {decimal}, or {quoted}"
        if "_" in text:
            return f"is {text}, which YAML 1.1 reads as {value} and YAML 1.2 as text", f"write {value}, or {quoted}"
        if text.lstrip("+-").startswith("0b"):
            return f"is {text}, which YAML 1.1 reads as {value} (base 2)", f"write {value}, or {quoted}"
    return None


def number_of(text: str) -> float | None:
    """The number that a plain value such as `1e-3` is in YAML 1.2, and text in YAML 1.1; None for any other."""
    return float(text) if _SCIENTIFIC.fullmatch(text) else None


_MAX_VALUES = 200_000  # aliases can make a small file huge
_MAX_DEPTH = 32  # a topology has five levels


@dataclass(slots=True)
class Document:
    """Plain data (mappings with text keys, lists, scalars) and where each value was written."""

    file: str
    data: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    overridden: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Document:
        """Read a file; whatever is wrong with it ends up in `problems`."""
        try:
            return parse_yaml(path.read_text(encoding="utf-8"), str(path))
        except UnicodeDecodeError as error:
            wrong, right = f"byte {error.start} is not UTF-8", "save the file as UTF-8 text"
        except ValueError as error:  # a path with a NUL in it
            wrong, right = str(error), "give the path of a topology file, such as topologies/world-2.yaml"
        except OSError as error:
            wrong = f"can't be read: {error.strerror or error}"
            right = "give the path of a topology file, such as topologies/world-2.yaml"
        return cls(str(path), problems=[Problem((), wrong, right, str(path), 1)])

    def override(self, path: KeyPath, value: object) -> None:
        """Put `value` at `path`, whose parents exist or can be made; later problems there name `--set`."""
        for known in [known for known in self.lines if known[: len(path)] == path]:
            del self.lines[known]
        here = self.data
        for depth, segment in enumerate(path[:-1], 1):
            if isinstance(here, dict) and here.get(segment) is None:
                here[segment] = {}
                self.overridden[path[:depth]] = ".".join(map(str, path))
            here = here[segment]
        here[path[-1]] = value
        self.overridden[path] = ".".join(map(str, path))

    def locate(self, problem: Problem) -> Problem:
        """The problem with the file and line of its key, or of the nearest key above it."""
        for length in range(len(problem.path), -1, -1):
            path = problem.path[:length]
            if path in self.overridden:
                return replaced(problem, file=f"--set {self.overridden[path]}", line=None)
            if path in self.lines:
                return replaced(problem, file=self.file, line=self.lines[path])
        return replaced(problem, file=self.file, line=1)


def parse_yaml(text: str, file: str) -> Document:
    """Parse YAML text. Duplicate keys, values that are no plain data and syntax errors end up in `problems`."""
    document = Document(file)
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if node is not None:
            document.lines[()] = node.start_mark.line + 1
            document.data = _Builder(document).build(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        wrong = f"is not YAML: {error.problem or error.context or 'syntax error'}"
        document.problems.append(Problem((), wrong, f"mend the text near column {column}", file, line))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        wrong = f"holds the character #x{error.character:04x}, which YAML forbids"
        document.problems.append(Problem((), wrong, "remove it", file, line))
    except RecursionError:
        document.problems.append(Problem((), "is nested too deeply", "write a flat topology", file, 1))
    return document


class _Builder:
    """Turns nodes into plain data and notes lines and problems in the document."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._open: set[int] = set()
        self._count = 0
        self._scalars = yaml.constructor.SafeConstructor()

    def build(self, node: yaml.Node, path: KeyPath) -> object:
        if id(node) in self._open:
            self._problem(node, path, "contains itself", "write the value out instead of an alias")
            return None
        if len(path) > _MAX_DEPTH:
            self._problem(node, path[:_MAX_DEPTH], "is nested too deeply", "write a flat topology")
            return None
        self._count += 1
        if self._count > _MAX_VALUES:
            if self._count == _MAX_VALUES + 1:
                self._problem(node, path, f"makes more than {_MAX_VALUES} values", "use fewer aliases")
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return self._sequence(node, path)
            return self._scalar(node, path)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, object]:
        result: dict[str, object] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or not _is_text(key_node.value):
                self._problem(key_node, path, "has a key that is no plain text", "use names as keys")
                continue
            key = key_node.value
            below = (*path, key)
            if key in result:
                first = self._document.lines[below]
                self._problem(key_node, below, f"is given twice, first on line {first}", "keep one of the two")
                continue
            self._document.lines[below] = line
            result[key] = self.build(value_node, below)
        return result

    def _sequence(self, node: yaml.SequenceNode, path: KeyPath) -> list[object]:
        result = []
        for index, item in enumerate(node.value):
            self._document.lines[*path, index] = item.start_mark.line + 1
            result.append(self.build(item, (*path, index)))
        return result

    def _scalar(self, node: yaml.Node, path: KeyPath) -> object:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind not in ("str", "int", "float", "bool", "null", "timestamp", "merge", "value"):
            self._problem(node, path, f"has the tag {node.tag}", "write a plain number or text")
            return None
        if kind in ("timestamp", "merge", "value"):
            kind, node = "str", yaml.ScalarNode("tag:yaml.org,2002:str", node.value)
        try:
            value = self._scalars.construct_object(node)
        except (yaml.YAMLError, ValueError, LookupError, ArithmeticError):
            value = None
            self._problem(node, path, f"{node.value[:40]!r} is no {kind}", "write a plain number or text")
        if isinstance(node, yaml.ScalarNode) and node.style is None and value is not None:
            surprising = surprise(node.value, value)
            if surprising is not None:
                self._problem(node, path, *surprising)
                return None
            number = number_of(node.value) if kind == "str" else None
            value = value if number is None else number
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            self._problem(node, path, "is too large a number", "write one that fits 64 bits")
            return None
        if isinstance(value, str) and not _is_text(value):
            self._problem(node, path, "holds half a surrogate pair", "write plain text")
            return None
        return value

    def _problem(self, node: yaml.Node, path: KeyPath, wrong: str, right: str) -> None:
        line = node.start_mark.line + 1
        self._document.problems.append(Problem(path, wrong, right, self._document.file, line))


def _is_text(value: object) -> bool:
    """Whether this is a string that UTF-8 can carry."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


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
    foreign = foreign_key(tuple(int(part) if part.isdecimal() else part for part in key.split(".")), workload)
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
